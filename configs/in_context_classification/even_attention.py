"""A price on attention received unevenly, and the front of the context that it no longer favours.

    python -m positionbias.sweep --config configs/in_context_classification/even_attention.py

The model of configs/in_context_classification/position_bias.py, which favours the front of its context by its causal
mask alone, for half of its steps, with `even_softmax` at three prices. In the condition "conflict" two equal items have
different labels; the order gap is the accuracy when the earlier is right less that when the later is. Said before it
was run, after a pilot with another seed: at price 3 the bias is removed if the interval of the gap holds 0 and that of
its difference to price 0 does not, and no replica is below 0.57 in the condition "train".

It is. Measured over eight replicas were gaps of 0.092 [0.080, 0.105] at price 0, which is `softmax`, 0.068 [0.055,
0.081] at 0.3 and -0.001 [-0.013, 0.011] at 3, less by 0.094 [0.078, 0.109]; accuracy in "train" was 0.584, 0.607 and
0.617, at least 0.611 in every replica at price 3. What the inputs' influence has of primacy falls less, from 0.119
[0.118, 0.121] to 0.067 [0.064, 0.070], where the fresh models have 0.179: attention is priced, and influence also runs
through values. In "conflict" itself no price lifts accuracy above guessing one of two labels (0.521, 0.518, 0.475).

Hardware and time: 2 CPU cores, about 5 minutes a cell. Numbers to reach: an interval of the gap at price 3 that holds
0, at price 0 one above 0.05, and at least 0.57 in "train" for each of the eight replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "in_context_classification_even_attention",
            "task": "in_context_classification(items=8, classes=2048, labels=32, burstiness=4, noise=0.75)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 1,
                "mask": "causal",
                "position": "none",
                "inputs": "identity",
                "residual": "none",
                "norm": "none",
                "mlp": False,
                "output_projection": False,
                "readout": "mlp",
                "readout_layers": 3,
            },
            "optimizer": {"name": "adamw(weight_decay=1e-6)", "learning_rate": 1e-3, "schedule": "constant"},
            "train": {"steps": 3000, "batch_size": 128, "replicas": 8, "log_every": 100},
            "evaluation": {"items": 4096},
            "seed": 1,
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    for price in (0.0, 0.3, 3.0):
        add({"model.operator": f"even_softmax(price={price})"}, name=f"price_{price:g}")
