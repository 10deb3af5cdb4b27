"""Modular addition, learnt from 80 % of the sums and then said of the others too.

    python -m positionbias.train --config configs/modular_addition/quick.py

One layer without normalisation and with strong weight decay, as in Nanda et al. 2023 (arXiv 2301.05217), whose modulus
of 113 and share of 30 % take about 10,000 steps.

Hardware and time: 2 CPU cores, 3 to 6 minutes. Number to reach: accuracy 0.99 on `train` and 0.98 on `held_out`, whose
ceilings are 1. These four replicas have yet to be measured. Two at a constant learning rate had 1.000 and 1.000 on
`train`, 0.998 and 1.000 on `held_out` after 1,200 steps; one of them fell to 0.984 and 0.981 by step 1,600, which the
cosine schedule is to prevent.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config(steps: int = 1200) -> ConfigDict:
    return ConfigDict(
        {
            "name": "modular_addition_quick",
            "task": "modular_addition(modulus=59, train_share=0.8)",
            "model": {
                "layers": 1,
                "width": 128,
                "heads": 4,
                "mask": "causal",
                "position": "learned",
                "norm": "none",
                "activation": "relu",
            },
            "optimizer": {
                "name": "adamw(b2=0.98, weight_decay=1.0)",
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup_steps": 20,
            },
            "train": {"steps": steps, "batch_size": 512, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 4096},
        }
    )
