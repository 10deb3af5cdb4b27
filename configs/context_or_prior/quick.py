"""One model that answers from the prompt or from memory, as it is told, and which of its facts it can do that with.

    python -m positionbias.train --config configs/context_or_prior/quick.py

A causal model learns 64 facts, and 48 of them are contradicted in training by one of the three documents of a prompt:
an intent says whether that document or the fact is asked for. Pair accuracy is the share of items that are right under
both intents: 0 for who goes by the fact, or by the document, whatever the intent, and 1/3 for who takes any document
where one is to be used. The other 16 facts are contradicted in the held-out conditions alone: there memory still wins
too often.

Hardware and time: 2 CPU cores, under 5 minutes (4 minutes of processor time). Number to reach: pair accuracy of at
least 0.98 for each of the four replicas (0.999 [0.996, 1.002] was measured; 0.561 [0.422, 0.699] held out, of which
"use" 0.648 and "ignore" 0.907). In training, accuracy is 1.000 and the best order-free guess 0.782.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "context_or_prior_quick",
            "task": "context_or_prior(subjects=16, relations=4, objects=16, folds=4, documents=3)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 2500, "batch_size": 64, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 4096},
        }
    )
