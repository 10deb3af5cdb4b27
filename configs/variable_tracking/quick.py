"""Variable tracking that is learned within minutes: all four names that hold a value, of two chains of three hops.

    python -m positionbias.train --config configs/variable_tracking/quick.py

A causal transformer reads two interleaved chains of assignments and names, one a row, the variables that hold the value
asked for, in the order of the chain. It is trained on chains whose statements stand in that order, as RULER has them,
and is measured on reversed and shuffled ones too, which a reader who finds each statement by its contents does not
mind. The form that asks for the value some hops back is harder: 3 layers with two chains of two hops were still
guessing between the two values after 2,000 steps.

Hardware and time: 2 CPU cores, under 5 min of training (262 s, with other work on the machine, were measured). Number
to reach: at least 0.7 for each of the four replicas, where the best rule that ignores order has 0.28 and naming the
next statement in the text 0.50 (1.000, 0.964, 0.954 and 0.756 were measured, 0.92 [0.74, 1.09] in the mean; 0.55 [0.19,
0.92] on shuffled chains and 0.37 [-0.11, 0.84] on reversed ones).

What it learned is the order of statements, as PINE shows, which tells it none:

    python -m positionbias.evaluate --workdir RUN --interventions pine

Under PINE, about 2 minutes, every replica answers the three orders of the same chains alike: 0.199 [0.138, 0.260] in
each, all within 0.0003 of each other, where "kept" is 0.55 ahead of "reversed" and 0.37 of "shuffled" without.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "variable_tracking_quick",
            "task": "variable_tracking(hops=3, chains=2, names=16, values=8)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=1.0)"},
            },
            "optimizer": {"name": "adamw(b2=0.98)", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1500, "batch_size": 64, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 4096},
        }
    )
