"""Needles that are found within minutes: four keys, in random order, each at any of eight depths.

    python -m positionbias.train --config configs/needle/quick.py

A causal model reads a haystack of noise with four needles in it, and then names the value of one key after the other,
a row each. The conditions beside it ask one question alone: "single" of the only needle, which takes no order,
"multi_key" of one among four. The best guess that ignores order, the value seen most often, is right in 0.34.

Hardware and time: 2 CPU cores, under 5 min of training (264 s, with other work on the machine, were measured). Number
to reach: at least 0.98 for each of the four replicas (0.9998, 1.000, 1.000 and 1.000 were measured, and 1.000 in
"single" and "multi_key").
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "needle_quick",
            "task": "needle(keys=4, queries=4, depths=8, cell=4, key_tokens=16, value_tokens=16, noise_tokens=4)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1000, "batch_size": 64, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 1024},
        }
    )
