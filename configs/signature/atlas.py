"""The atlas: what the last output of untrained softmax attention depends on, for every mask of order and every scheme.

    python -m positionbias.sweep --config configs/signature/atlas.py --sweep mask,position
    python scripts/signatures.py SWEEP_FOLDER atlas              # draws docs/atlas.png and keeps its numbers

Four layers that are nothing but attention (no residual, no MLP) read 16 pairs and a key, 33 tokens in all, and are not
trained. Eleven masks are all that order alone tells, at one size each; schemes are all that are registered. Beside each
curve stands what even attention makes of the mask, and of a bias that has no parameters (`theory.rollout.influence`;
the product of Wu et al. 2025, arXiv 2502.01951, section 4, in squares): rotations and what is added to embeddings
count for nothing there, and of t5_bias, fire and learned_relative theory says nothing, as what they add is drawn.

Hardware and time: 2 CPU cores, about 25 minutes for 154 cells, nearly all of it compilation. Numbers to reach: a
primacy within 0.3 shares of what theory has for each mask without a scheme.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from positionbias import spec

# Every mask that order alone tells; others read frames, scales, segments, roles or what an objective hides.
MASKS = {
    "bidirectional": "bidirectional",
    "causal": "causal",
    "context": "context_bidirectional",
    "prefix": "prefix(8)",
    "window": "causal & sliding_window(8)",
    "sinks": "causal & window_with_sinks(8, sinks=1)",
    "dilated": "causal & dilated_window(4, dilation=4)",
    "power": "causal & power_of_two(window=2)",
    "random": "causal & random_graph(0.25)",
    "stochastic": "causal & random_permutation_window(8)",
    "neighborhood": "neighborhood(9)",
}


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "signature_atlas",
            "task": "associative_recall(pairs=16, keys=64, values=64, delays=1, shift=0)",
            "model": {
                "layers": 4,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "none",
                "residual": "none",
                "mlp": False,
            },
            "train": {"steps": 0, "replicas": 8},
            "evaluation": {"items": 256, "influence_items": 256},
        }
    )


def sweep_mask(add: Callable[..., Any]) -> None:
    for name, mask in MASKS.items():
        add({"model.mask": mask}, name=name)


def sweep_position(add: Callable[..., Any]) -> None:
    for name in spec.names("positions"):
        add({"model.position": name}, name=name)
