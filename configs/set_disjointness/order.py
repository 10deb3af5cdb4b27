"""Which of two lists comes first, to a model that keeps the first in a small state: a sweep over state and reading.

    python -m positionbias.sweep --config configs/set_disjointness/order.py
    python -m positionbias.study --name just_read_twice               # what its claims need of it

The common element of a list of 4 or 8 and one of 16 or 32 is asked for, the short one first or last. Arora et al. 2024
(arXiv 2407.05483) ask models of gated convolutions and linear attention by turns, on lists of up to 768. Here one layer
of linear attention with their feature map, which finds what both lists have, is read by one of softmax attention, so
that one state alone is small: "small" has heads of 8, "large" of 12. "noncausal" sums over both lists before it reads
from the sum, with the state of "small"; "twice" is "small", given both lists twice (JRT-Prompt).

Hardware and time: 2 CPU cores, about 30 minutes for the four cells of five replicas, and twice that beside other work.
Numbers to reach are 0.9 for "large" and 0.95 for "noncausal", where "small" stays at a half or less: with six replicas
0.926 [0.902, 0.950], 0.985 [0.974, 0.996] and 0.419 [0.303, 0.536] were measured, and 0.793 [0.567, 1.020] in "twice".
What order matters is for the claims of configs/just_read_twice/study.toml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

SIZES = "[[4, 16], [16, 4], [4, 32], [32, 4], [8, 32], [32, 8]]"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "set_disjointness_order",
            "task": f"set_disjointness(train={SIZES}, test=[], vocabulary=128)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 2,
                "head_size": 8,
                "mask": "causal",
                "position": "none",
                "operator": "[linear_attention(feature='taylor'), softmax]",
                "init": {"embedding": "normal(std=1.0)"},
            },
            "optimizer": {
                "name": "adamw(weight_decay=0.1)",
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup_steps": 100,
            },
            "train": {"steps": 4000, "batch_size": 64, "replicas": 5, "log_every": 100},
            "evaluation": {"items": 4096},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    add({}, name="small")
    add({"model.head_size": 12}, name="large")
    add({"model.mask": "bidirectional"}, name="noncausal")
    add({"task.repeats": 2}, name="twice")
