"""Set disjointness that is learned within minutes: the one element that a list of 4 shares with one of 8 or 16.

    python -m positionbias.train --config configs/set_disjointness/quick.py

A causal transformer reads two lists, the short one first or last, and has to name the element that stands in both. A
guess at an element of the short list is right once in four. Attention keeps every element, so that the order of the
lists makes no difference: this is the arm without an order gap that models with a small state are laid beside. The
condition "test" has longer lists, of 4 and 24, than were trained on.

Hardware and time: 2 CPU cores, under 3 min of training (4 min of processor time). Number to reach: at least 0.99 for
each of the four replicas (0.9995 [0.9986, 1.0003] was measured, and 0.991 [0.986, 0.995] on the longer lists).
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "set_disjointness_quick",
            "task": (
                "set_disjointness(train=[[4, 8], [8, 4], [4, 16], [16, 4]], test=[[4, 24], [24, 4]], vocabulary=64)"
            ),
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=1.0)"},
            },
            "optimizer": {"name": "adamw(b2=0.98)", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1500, "batch_size": 64, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 4096},
        }
    )
