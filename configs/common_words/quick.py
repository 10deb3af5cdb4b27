"""Common words that are learned within minutes: the 4 words that stand 6 times in a list where 24 others stand once.

    python -m positionbias.train --config configs/common_words/quick.py

A causal transformer reads the list and names its common words, one a row, in the order of their ids. Attention with
equal weights counts, so that the best guesser who ignores order is always right: its score is the exact ceiling of 1,
and not a baseline to beat. The point is to reach that ceiling, also with all copies of the common words before the
others ("early") or after them ("late"), which was not trained on.

Hardware and time: 2 CPU cores, about 3 min of training with other work on the machine. Number to reach: at least 0.99
for each of the four replicas (0.9997 [0.9995, 0.9998] was measured; 0.9952 [0.9932, 0.9972] early and 0.9989 [0.9985,
0.9993] late). A word that is common, whatever its turn, scores 0.52.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "common_words_quick",
            "task": "common_words(common=4, often=6, others=24, seldom=1, vocabulary=40)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=1.0)"},
            },
            "optimizer": {"name": "adamw(b2=0.98)", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 800, "batch_size": 64, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 4096},
        }
    )
