"""Recall in three architectures: a hybrid of layers, an encoder-decoder with three masks, and a looped layer.

    python -m positionbias.sweep --config configs/associative_recall/architectures.py

The task is that of configs/associative_recall/quick.py: four pairs, one asked for again. "hybrid" has two kinds of
layers: a causal window of three tokens with ALiBi, then causal attention that is told no positions. In
"encoder_decoder" the encoder sees a window, cross attention everything and the decoder what stands before it. "looped"
is one layer, applied three times.

Hardware and time: 2 CPU cores, about 5 minutes (59, 41 and 136 s of training were measured, with other work on the
machine). Number to reach: at least 0.95 for each of the four replicas of each (1.000 was measured in all).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "associative_recall_architectures",
            "task": "associative_recall(pairs=4, keys=16, values=16, delays=4, shift=4)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "position": "rope",
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1000, "batch_size": 64, "replicas": 4, "log_every": 20},
            "evaluation": {"items": 4096},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    add({"model.mask": "[causal & sliding_window(3), causal]", "model.position": "[alibi, none]"}, name="hybrid")
    masks = "encoder_decoder(encoder_mask=sliding_window(4), cross_mask=bidirectional)"
    add({"model.architecture": masks, "model.mask": "causal"}, name="encoder_decoder")
    add({"model.architecture": "looped(loops=3)", "model.layers": 1, "train.steps": 1500}, name="looped")
