"""What more context is worth in real text: the loss of the next byte by its position in a window of six plays.

    python -m positionbias.train --config configs/text/quick.py
    python -m positionbias.sweep --config configs/text/quick.py

A small causal transformer reads windows of 64 bytes of Shakespeare, which comes with the package, and says every next
byte. The first rows know little more than frequencies do (unigram, bigram); later ones lose less, as long as context
helps. The sweep lays beside it one whose layers see 4 bytes each and one that is not told positions. Needs the extra
`data`.

Hardware and time: 2 CPU cores, X min. Number to reach in the condition "test": a mean loss of at most X nats a byte
(X was measured; unigram X, bigram X).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config(steps: int = 1500) -> ConfigDict:
    return ConfigDict(
        {
            "name": "text_quick",
            "task": "text(window=64)",
            "model": {"layers": 3, "width": 64, "heads": 4, "mask": "causal", "position": "rope"},
            "optimizer": {"name": "adamw(b2=0.98)", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": steps, "batch_size": 32, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 1024},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    add({}, name="rope")
    add({"model.mask": "causal & sliding_window(4)"}, name="window_4")
    add({"model.position": "none"}, name="none")
