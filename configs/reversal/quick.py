"""The reversal curse: facts are known as they were told, and not the other way round.

    python -m positionbias.train --config configs/reversal/quick.py

A causal model learns 32 pairs forward, a R b, and 16 of them backward too, b R^-1 a. It knows all it was told, and the
reverse of the other 16 (condition "held_out") not at all: it answers with a name that it was told backward, so that
accuracy is below the 1/32 of a guess and not at it.

Hardware and time: 2 CPU cores, under a minute. Numbers to reach, for each of the four replicas: at least 0.99 in
"forward" and "backward" (1.000 was measured in all), at most 1/32 = 0.031 in "held_out" (0.000 in all, with a mean
log-probability of -6.4, where a guess among 32 has -3.5).
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "reversal_quick",
            "task": "reversal(pairs=32, both=16)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=1.0)"},
            },
            "optimizer": {"name": "adamw(b2=0.98)", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 500, "batch_size": 64, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 4096},
        }
    )
