"""Which items of its context a stack of bare attention favours: causal masks the front, decay the end.

    python -m positionbias.sweep --config configs/emergence/masks.py --sweep schemes
    python -m positionbias.study --name emergence                # what its claims need of it

The model and data of Wu et al. 2025 (arXiv 2502.01951), figure 2: one head a layer, no residual, MLP, norm or output
projection, read by an MLP of three hidden layers; eight labelled items of two classes and the label of a ninth, the
answer at any of the eight. Vectors have unit length on average (`scale` of the task), as the released code's 1/8 leaves
labels too weak to learn from within minutes. The gap of a pair in the condition "conflict" is the accuracy when the
earlier of two equal items with different labels is right less that when the later is. "schemes" has three ways in which
order is told, "depths" the causal mask at three depths.

Hardware and time: 2 CPU cores, about 6 minutes a cell of two layers at 6,000 steps and five replicas (8 with other work
on the machine). The numbers to reach are the claims of study.toml: a gap between first and last of 0.077 for the causal
mask in the paper, -0.073 for decay and -0.002 for RoPE, after 100,000 steps. Measured were 0.085 [0.063, 0.106] and
-0.107 [-0.124, -0.090] for the first two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "emergence_masks",
            "task": "in_context_classification(items=8, classes=2048, labels=32, burstiness=4, noise=0.75)",
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


def sweep_schemes(add: Callable[..., Any]) -> None:
    for name, position in (("causal", "none"), ("decay", "decay(gamma=0.8)"), ("rope", "rope")):
        add({"model.position": position}, name=name)


def sweep_depths(add: Callable[..., Any]) -> None:
    for layers in (2, 4, 6):
        add({"model.layers": layers}, name=f"layers_{layers}")
