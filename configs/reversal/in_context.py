"""No reversal curse where the pairs stand in the prompt: asked forward or backward, a model finds the other name.

    python -m positionbias.train --config configs/reversal/in_context.py

A causal model reads four pairs, a R b, paired anew in every prompt, and answers R a as well as R^-1 b. It is the
control of configs/reversal/quick.py, where pairs are held in the weights. Any name of the kind asked for is right once
in four.

Hardware and time: 2 CPU cores, a minute and a half of training (92 s, with other work on the machine, were measured).
Number to reach: at least 0.98 in "forward" and in "backward" for each of the four replicas (1.000 was measured in both
for all of them).
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "reversal_in_context",
            "task": "reversal_in_context(pairs=4, names=12)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 2000, "batch_size": 64, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 4096},
        }
    )
