"""Recurrence and attention in one model: which of two layers is which, on recall of every one of eight pairs.

    python -m positionbias.sweep --config configs/hybrid/layers.py
    python -m positionbias.sweep --config configs/hybrid/layers.py --sweep window

A causal model reads eight pairs and then all eight keys in random order, and says the value of each. Its two layers are
attention with RoPE, recurrences that are told no positions (`gated_delta`), or one of each, in either order. In
"window" attention sees four tokens, and what it cannot see is left to linear attention with Taylor features (as in
Based, Arora et al. 2024, arXiv 2402.18668).

Said before it was run, after a pilot of 600 steps and two replicas with another seed: an arm recalls if no replica is
below 0.95 after 800 steps; the order of layers matters if of the two hybrids one recalls, and the interval of the other
ends below 0.9; windows need a memory if the arm "window" ends below 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "hybrid_layers",
            "task": "associative_recall(pairs=8, keys=16, values=16, queries=8, delays=8, shift=0)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "none",
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 800, "batch_size": 64, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 4096},
        }
    )


WINDOW = "causal & sliding_window(4)"
LINEAR = "linear_attention(feature='taylor')"


def sweep(add: Callable[..., Any]) -> None:
    add({"model.operator": "softmax", "model.position": "rope"}, name="attention")
    add({"model.operator": "gated_delta"}, name="recurrence")
    first, second = "recurrence_then_attention", "attention_then_recurrence"
    add({"model.operator": "[gated_delta, softmax]", "model.position": "[none, rope]"}, name=first)
    add({"model.operator": "[softmax, gated_delta]", "model.position": "[rope, none]"}, name=second)


def sweep_window(add: Callable[..., Any]) -> None:
    add({"model.operator": "softmax", "model.position": "rope", "model.mask": WINDOW}, name="window")
    add({"model.operator": LINEAR}, name="linear")
    operators = {"model.operator": f"[softmax, {LINEAR}]", "model.position": "[rope, none]"}
    add(operators | {"model.mask": f"[{WINDOW}, causal]"}, name="window_then_linear")
    operators = {"model.operator": f"[{LINEAR}, softmax]", "model.position": "[none, rope]"}
    add(operators | {"model.mask": f"[causal, {WINDOW}]"}, name="linear_then_window")
