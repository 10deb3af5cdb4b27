"""Recall against the numbers that are kept: twelve operators at four sizes of state each.

    python -m positionbias.sweep --config configs/recall/operators.py

Eight pairs of 32 keys and 32 values, then every key again, at slots and delays (0 to 47) that are independent and even.
Layer 0 is a gated convolution of 3 tokens, layer 1 the operator; no MLPs, no positions: what is kept of the pairs is
what the operator keeps. Sizes are of heads, 4 to 32 (two of them), but for "window" (8 to 48 tokens), "gated_slot" (4
to 32 slots) and "based" (4 to 16 features), whose heads have 16. A stopped sweep goes on from its last finished cell
when the command is given again, and its report has the figure, accuracy over the numbers kept, of what is there.

Rules that were fixed before the run, after a pilot with another seed:

    bought    accuracy at the largest size minus that at the smallest: interval above 0, for all but softmax
    enough    mean at the largest size at least 0.95, for all but window
    scarce    mean at the smallest size below 0.5, for all but softmax and window
    window    mean within 0.02 of the ceiling, at every size
    rule      delta minus linear_attention at heads of 8: interval above 0 (the delta rule makes more of a state)
    place     tilt by slot (first quarter minus last) at heads of 8: of retention, whose state decays, interval below 0

Hardware and time: 2 CPU cores, 48 cells of four replicas; to be measured. Numbers to
reach: 0.95 at the largest size of all but window, and the other rules above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

HEAD_SIZES = (4, 8, 16, 32)
BY_HEAD_SIZE = (
    "softmax",
    "linear_attention",
    "retention",
    "gated_linear_attention",
    "mamba2",
    "hla2",
    "delta",
    "gated_delta",
    "titans(window=1)",
)


def layers(operator: str) -> str:
    """The convolution that every model has, and the operator behind it."""
    return f"[short_convolution(width=3, gated=True), {operator}]"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "recall_operators",
            "task": "associative_recall(pairs=8, keys=32, values=32, queries=8, delays=48, shift=0)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 2,
                "head_size": 16,
                "mask": "causal",
                "position": "none",
                "operator": layers("softmax"),
                "mlp": False,
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 5e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1000, "batch_size": 64, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 1024},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    for operator in BY_HEAD_SIZE:
        curve = operator.partition("(")[0]
        for size in HEAD_SIZES:
            settings = {"model.operator": layers(operator), "model.head_size": size}
            add(settings, name=f"{curve}-{size}", curve=curve)
    for width in (8, 16, 32, 48):
        add({"model.mask": f"[causal, causal & sliding_window({width})]"}, name=f"window-{width}", curve="window")
    for slots in (4, 8, 16, 32):
        operator = layers(f"gated_slot(slots={slots})")
        add({"model.operator": operator}, name=f"gated_slot-{slots}", curve="gated_slot")
    for features in (4, 8, 12, 16):
        operator = layers(f"based(features={features}, window=8)")
        add({"model.operator": operator}, name=f"based-{features}", curve="based")
