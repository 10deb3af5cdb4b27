"""Patterns of recurrence and attention: how many of four layers read all, which, and whether a window does as well.

    python -m positionbias.sweep --config configs/hybrid/patterns.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

# A letter a layer: a recurrence of a small state, attention to all, and attention within eight tokens.
LETTERS = {
    "r": {"operator": "mamba2", "mask": "causal"},
    "a": {"operator": "softmax", "mask": "causal"},
    "w": {"operator": "softmax", "mask": "causal & sliding_window(8)"},
}
PATTERNS = ("rrrr", "arrr", "rrra", "arar", "rara", "rwrw", "wwww", "aaaa")


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "hybrid_patterns",
            "task": "associative_recall(pairs=8, keys=32, values=32, queries=8, delays=48, shift=0)",
            "model": {
                "layers": 5,
                "width": 64,
                "heads": 2,
                "head_size": 8,
                "mask": "causal",
                "position": "none",
                "mlp": False,
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 5e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1000, "batch_size": 64, "replicas": 5, "log_every": 100},
            "evaluation": {"items": 1024},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    for pattern in PATTERNS:
        layers = [LETTERS[letter] for letter in pattern]
        operators = ["short_convolution(width=3, gated=True)", *(layer["operator"] for layer in layers)]
        masks = ["causal", *(layer["mask"] for layer in layers)]
        add({"model.operator": f"[{', '.join(operators)}]", "model.mask": f"[{', '.join(masks)}]"}, name=pattern)
