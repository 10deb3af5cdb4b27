"""A rule found from examples, and whether it is applied to words that were never seen under it.

    python -m positionbias.train --config configs/rebinding/quick.py

A causal transformer reads four lists and what one of six rules makes of them. The first list tells the rule, and from
the second on it is applied to words of the first vocabulary. Words of the second vocabulary were copied in training and
never came under another rule: there nothing is rebound, and the model copies them whatever the demonstrations show.

Hardware and time: 2 CPU cores, 3 and a half minutes. Numbers to reach, over four replicas: at least 0.93 in each in
"train" (0.948 [0.932, 0.963] was measured, the ceiling is 0.969) and 0.87 in "familiar" (0.897 [0.864, 0.929] of 0.938;
0.743 of 0.750 in the first list and 0.951 of 1 in the last); the best order-free guess, which tells by the words made
so far whether all are the same, is 0.56 in "train" and 0.61 in "familiar". In "rebound" 0.198 [0.194, 0.203] was
measured at every list, which is what copying gets (0.199), where an ideal reader has 0.950. With
configs/rebinding/quick.py:bound=3, where the second vocabulary is trained under three of the rules, "familiar" is 0.881
[0.819, 0.942] and "rebound" 0.292 [0.235, 0.348]: the other three rules are not carried over to it either.

Heads that interfere, said before any head was asked, of its four replicas, and after two other guesses failed
(`configs/context_or_prior/quick.py`):

    python -m positionbias.train --config configs/rebinding/quick.py --workdir RUN
    python -m positionbias.analyze --workdir RUN --analyses 'head_gating(updates=200, seeds=2)' --condition rebound

In "rebound" the heads that copy a word from its place say one that is wrong for sure, as nothing is copied there: they
interfere. A model that is surely wrong may gain by any damage, which is what the control is for.

    interfering   change of the log-probability of answers without the heads that gating calls interfering: interval
                  above 0; without as many random heads: interval not above 0; their difference: interval above 0

Measured in "rebound", where accuracy is again 0.198 [0.194, 0.203]:

    interfering   fails by its control alone: 3.800 [3.227, 4.372] nats without them, more in each replica than without
                  as many random heads by 1.652 [1.462, 1.843], but these too are 2.147 [1.506, 2.789]

Heads that interfere are there, at least 3.5 nats' worth in every replica, in layers 1 and 2; but as the model is surely
wrong, more than half of the gain is that of any damage, and the control says so. So is 1.235 [0.409, 2.060] without
facilitating heads, whose control is 1.814 [1.399, 2.229]: without some less is left of the wrong answer too. Gating
took 11 minutes with much other work on the machine, 4 of processor time. A second rule, of the condition
of training, was said with this one and not asked.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config(steps: int = 1000, bound: int = 1) -> ConfigDict:
    return ConfigDict(
        {
            "name": "rebinding_quick",
            "task": f"rebinding(lists=4, vocabulary=8, bound={bound})",
            "model": {
                "layers": 3,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": steps, "batch_size": 64, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 4096},
        }
    )
