"""Modular addition, learnt from 80 % of the sums and then said of the others too.

    python -m positionbias.train --config configs/modular_addition/quick.py

One layer without normalisation and with strong weight decay, as in Nanda et al. 2023 (arXiv 2301.05217), whose modulus
of 113 and share of 30 % take about 10,000 steps.

Hardware and time: 2 CPU cores, 3 minutes (4 and a half with other work on the machine). Number to reach: accuracy 0.98
on `train` and 0.95 on `held_out` in each of the four replicas, ceilings 1 (1.000 in all four was measured, held out
1.000 [0.999, 1.001]; after 1,200 steps one of them was still on its way, with 0.910 held out). A sum does not depend on
the order of its terms, so that a guess that ignores it may know them all; any number is right once in 59.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config(steps: int = 1800) -> ConfigDict:
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
