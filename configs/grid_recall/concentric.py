"""The colour of an object anywhere in two grids, under masks and positions that read grids and rings.

    python -m positionbias.sweep --config configs/grid_recall/concentric.py
    python -m positionbias.sweep --config configs/grid_recall/concentric.py --sweep fast

Two grids of 4 x 4 coloured objects are read row by row, then one of the objects is named. "raster" is causal with RoPE,
1 to 32 positions from cell to question; "reversed" counts from the end. Concentric causal attention (Xing et al. 2024,
arXiv 2410.15926, "concentric") tells a cell its ring, 1 to 4 positions from the question, and lets rings see inwards
only. The paper finds that RoPE makes models see objects at the front of a raster, far from the question, less well, and
that rings even it out. "block_causal" lets a grid see itself and turns by its number too (TC-LLaVA, arXiv 2409.03206).

Hardware and time: 2 CPU cores, about 2 minutes a cell (65 to 180 s of training were measured with other work on the
machine). Numbers to reach: at least 0.95 for each of the four replicas of each. Measured were, with the tilt by cell
(the first quarter of the cells minus the last, that is nearest to the question):

    raster        0.997 [0.991, 1.003]   tilt  0.001 [-0.002, 0.004]
    reversed      0.997 [0.991, 1.002]   tilt  0.001 [-0.002, 0.003]
    concentric    0.999 [0.996, 1.001]   tilt -0.001 [-0.003, 0.001]
    block_causal  0.994 [0.987, 1.001]   tilt -0.002 [-0.005, 0.002]

So the paper's bias does not show: a model trained on every place answers alike at all of them. RoPE's slow pairs, which
hardly turn within 32 positions, leave it a way to look objects up wherever they stand. "fast" has none (with base 10
the slowest pair turns by 4 radians in 31 positions), and also has mask and positions of the rings each alone:

    raster        0.313 [0.307, 0.319]   tilt  0.003 [-0.027, 0.033]
    mask          0.309 [0.288, 0.331]   tilt -0.010 [-0.068, 0.047]
    assignment    0.996 [0.987, 1.005]   tilt  0.000 [-0.003, 0.002]
    concentric    0.994 [0.987, 1.000]   tilt  0.001 [-0.002, 0.004]

There rings do help, by their positions alone; the mask makes no difference, as the question sees every cell anyway.
What raster positions lose they lose at both ends, not with distance: the first and the last quarter of the cells are
0.051 [0.015, 0.086] and 0.054 [0.025, 0.082] below the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "grid_recall_concentric",
            "task": "grid_recall(frames=2, side=4, objects=32, colours=8)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
            },
            "optimizer": {"name": "adamw", "learning_rate": 5e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 800, "batch_size": 64, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 4096},
        }
    )


CONCENTRIC = {"model.mask": "concentric", "model.assignment": "concentric"}


def sweep(add: Callable[..., Any]) -> None:
    add({}, name="raster")
    add({"model.assignment": "reversed"}, name="reversed")
    add(CONCENTRIC, name="concentric")
    add({"model.mask": "block_causal", "model.position": "dual_rope"}, name="block_causal")


def sweep_fast(add: Callable[..., Any]) -> None:
    fast = {"model.position": "rope(base=10)"}
    add(fast, name="raster")
    add(fast | {"model.mask": "concentric"}, name="mask")
    add(fast | {"model.assignment": "concentric"}, name="assignment")
    add(fast | CONCENTRIC, name="concentric")
