"""Which of two lists comes first, at the paper's sizes: gated convolutions and linear attention by turns.

    python -m positionbias.sweep --config configs/set_disjointness/paper.py --sweep arm,rate
    python -m positionbias.study --name just_read_twice --scale paper    # what its claims need of it

Arora et al. 2024 (arXiv 2407.05483, section 3 and its released configs): four layers of width D, convolutions of three
tokens with a gate in the first and the third, linear attention with second-order features of 2 heads in the others, no
positions, no MLPs, tied embeddings, lists of up to 256 in training and of up to 768 in "test", 90,000 steps of 128, and
the best of three learning rates. Arms are the least state that is swept here, D = 36 and 8 features a head, and the
largest of the paper's, D = 128 and 24 features; without the causal mask; and with both lists given twice. Ours are
fresh examples where the paper has 20,000 a pair of sizes, no dropout of embeddings, and without the mask convolutions
still look back, where the paper's go round.

Hardware and time: a GPU, not measured. Number to reach: "large" above 0.9 on "test", which the paper draws and does not
print; what order matters is for the claims of configs/just_read_twice/study.toml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

RATES = (1e-4, 5e-4, 8e-4)


def layers(features: int) -> str:
    """A convolution and linear attention by turns."""
    return f"[short_convolution(width=3, gated=True), based(features={features}, window=0, convolution=0)] * 2"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "set_disjointness_paper",
            "task": "set_disjointness(train='paper', test='paper')",
            "model": {
                "layers": 4,
                "width": 36,
                "heads": 2,
                "mask": "causal",
                "position": "none",
                "operator": layers(8),
                "mlp": False,
                "readout": "tied",
            },
            "optimizer": {"name": "adamw(weight_decay=0.1)", "learning_rate": 5e-4, "schedule": "cosine"},
            "train": {"steps": 90000, "batch_size": 128, "replicas": 2, "log_every": 500},
            "evaluation": {"items": 8192},
        }
    )


def sweep_arm(add: Callable[..., Any]) -> None:
    add({}, name="small")
    add({"model.width": 128, "model.operator": layers(24)}, name="large")
    add({"model.mask": "bidirectional"}, name="noncausal")
    add({"task.repeats": 2}, name="twice")


def sweep_rate(add: Callable[..., Any]) -> None:
    for rate in RATES:
        add({"optimizer.learning_rate": rate}, name=f"{rate:g}")
