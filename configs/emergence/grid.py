"""Where bias comes from, factor by factor: mask, position scheme, depth, residual streams and data, in any product.

    python -m positionbias.sweep --config configs/emergence/grid.py --sweep mask,position
    python -m positionbias.sweep --config configs/emergence/grid.py --sweep mask,position,depth,residual,data
    python -m positionbias.analyze --workdir RUN_FOLDER --analyses attention_received,rollout  # sinks, rollout

The model and data of configs/emergence/masks.py (Wu et al. 2025, arXiv 2502.01951, figures 2 and 3), of which this is
every factor by itself: four masks, three ways in which order is told, two to six layers, streams that are added or not,
and the place where answers stand in training: anywhere, first, last, or at either end. Sweeps multiply in the order in
which they are named, and what is not named is as in the first: the causal mask, nothing told, two layers, nothing
added, answers anywhere. A gap is told as in masks.py.

Measured of masks x schemes over five replicas of 6,000 steps: the three gaps, their intervals within 0.04 of it,
and the accuracy where nothing is in conflict. Those who say one of the two labels are at 0.516. Before training no gap
was further from 0 than 0.006, and all intervals held 0 but those of two of middle-last, -0.005 and -0.006.

    mask           scheme   first-middle   first-last   middle-last   accuracy
    causal         none     +0.052         +0.085       +0.023        0.649
    causal         decay    -0.104         -0.104       +0.033        0.541
    causal         rope     -0.002         +0.028       +0.028        0.576
    window         none     -0.176         -0.077       +0.123        0.536
    window         decay    -0.103         -0.086       +0.022        0.513
    window         rope     -0.161         -0.088       +0.094        0.527
    prefix         none     +0.054         +0.078       +0.018        0.637
    prefix         decay    -0.117         -0.117       +0.007        0.539
    prefix         rope     +0.011         +0.035       +0.015        0.579
    bidirectional  none     -0.011         -0.015       +0.003        0.606
    bidirectional  decay    -0.070         -0.138       -0.041        0.534
    bidirectional  rope     -0.008         -0.002       +0.014        0.600

So the causal mask favours the front, and the bidirectional one nothing, without a scheme or with RoPE: all of its
intervals hold 0. A prefix of three items does as the causal mask; a window favours the middle, where most paths lead;
and with decay the last item is favoured over the first under every mask. Of the paper's gaps three are not met: that of
middle-last with decay, [+0.005, +0.061], and the two of the last item with RoPE, [+0.007, +0.049] and [+0.009, +0.047].

Where nothing is told, the attention of the second layer that the first token receives (the mean of all is 1) and what
even attention would have it receive, and the rollout of both layers at the last row, to the labels of the eight items:

    mask           received            even   rollout to labels                         of even attention
    causal         3.40 [3.29, 3.51]   3.44   .18 .14 .11 .08 .06 .05 .03 .02           .14 .09 .07 .05 .04 .03 .02 .01
    window         3.57 [3.48, 3.66]   2.83   .03 .06 .09 .12 .13 .10 .07 .05           .03 .05 .07 .09 .10 .07 .05 .03
    prefix         1.84 [1.79, 1.88]   1.99   .15 .15 .15 .08 .06 .05 .03 .02           .12 .12 .12 .05 .04 .03 .02 .01
    bidirectional  0.97 [0.94, 1.00]   1.00   .08 .08 .08 .08 .08 .08 .08 .08           .06 .06 .06 .06 .06 .06 .06 .06

So sinks are where the mask puts them, before training as well, and but for the window's no more than that; training
turns attention from items to labels, and the order among these is that of theory.

Hardware and time: 2 CPU cores, about 6 minutes a cell of two layers at 6,000 steps and five replicas (40 minutes for
the twelve on one core). Numbers to reach are the paper's, after 100,000 steps: gaps of first-middle, first-last and
middle-last of +0.059, +0.077 and +0.018 under the causal mask alone, -0.055, -0.073 and -0.003 with decay, +0.002,
-0.002 and -0.009 with RoPE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

TASK = "in_context_classification(items=8, classes=2048, labels=32, burstiness=4, noise=0.75, answer_positions={})"
# A window of 9 of the 17 tokens reaches the first item in two layers; a prefix of 6 is the first three items.
MASKS = {
    "causal": "causal",
    "window": "causal & sliding_window(9)",
    "prefix": "prefix(6)",
    "bidirectional": "bidirectional",
}
POSITIONS = {"none": "none", "decay": "decay(gamma=0.8)", "rope": "rope"}
DATA = {"anywhere": [], "first": [0], "last": [7], "ends": [0, 7]}


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "emergence_grid",
            "task": TASK.format([]),
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 1,
                "mask": "causal",
                "position": "none",
                "inputs": "identity",
                "residual": "none",
                "norm": "none",
                "mlp": False,
                "output_projection": False,
                "readout": "mlp",
                "readout_layers": 3,
            },
            "optimizer": {"name": "adamw(weight_decay=1e-6)", "learning_rate": 1e-3, "schedule": "constant"},
            "train": {"steps": 6000, "batch_size": 128, "replicas": 5, "log_every": 100},
            "evaluation": {"items": 8192},
        }
    )


def sweep_mask(add: Callable[..., Any]) -> None:
    for name, mask in MASKS.items():
        add({"model.mask": mask}, name=name)


def sweep_position(add: Callable[..., Any]) -> None:
    for name, position in POSITIONS.items():
        add({"model.position": position}, name=name)


def sweep_depth(add: Callable[..., Any]) -> None:
    for layers in (2, 4, 6):
        add({"model.layers": layers}, name=f"{layers}_layers")


def sweep_residual(add: Callable[..., Any]) -> None:
    for residual in ("none", "add"):
        add({"model.residual": residual}, name={"none": "alone", "add": "residual"}[residual])


def sweep_data(add: Callable[..., Any]) -> None:
    for name, places in DATA.items():
        add({"task": TASK.format(places)}, name=name)
