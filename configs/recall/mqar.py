"""Multi-query associative recall as published: recall against the state that is kept, for a GPU.

    python -m positionbias.sweep --config configs/recall/mqar.py --sweep operator,size,width,rate

Arora et al. 2023 ("Zoology", arXiv 2312.04927): a vocabulary of 8,192, half keys and half values; N pairs, then each
key once more, at delays that are mostly short (`gap_power=0.01`). "size" has its lengths and numbers of pairs, 64 and
4, 128 and 8, 256 and 16, one training each; "width" and "rate" its widths and learning rates, of which the best counts.
Layer 0 is a gated convolution of 3 tokens, layer 1 the operator, there are no MLPs and no positions. Published are 64
passes over 100,000 sequences; here as many sequences are drawn, all of them new.

What differs from the published data: every pair is asked at a delay of its own choosing, so that slot and delay are
independent (the published generator asks early pairs early), rows between the asked ones may be asked too, and the
values of a sequence may repeat.

Hardware and time: one GPU, not measured. Number to reach: attention 1.00 at every width from 64 and every length, as
published; for the others the published figure has, averaged over its mix of lengths, 0.96 for the delta rule with 8,500
numbers kept, 0.91 for Based, 0.78 for Mamba2 at about as many. Nothing of this was measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from positionbias.config.sweeps import product

OPERATORS = {
    "softmax": "softmax",
    "based": "based(features=16, window=0, convolution=0)",
    "gated_linear_attention": "gated_linear_attention",
    "mamba2": "mamba2",
    "delta": "delta",
    "gated_delta": "gated_delta",
}


def layers(operator: str) -> str:
    """The convolution that every model has, and the operator behind it."""
    return f"[short_convolution(width=3, gated=True), {operator}]"


def task(length: int, pairs: int) -> str:
    return (
        f"associative_recall(pairs={pairs}, keys=4095, values=4096, queries={pairs}, delays={length - 2 * pairs},"
        " shift=0, gap_power=0.01)"
    )


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "mqar",
            "task": task(64, 4),
            "model": {
                "layers": 2,
                "width": 128,
                "heads": 2,
                "mask": "causal",
                "position": "none",
                "operator": layers("softmax"),
                "mlp": False,
            },
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 1000},
            "train": {"steps": 25000, "batch_size": 256, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 2048},
        }
    )


def sweep_operator(add: Callable[..., Any]) -> None:
    for name, operator in OPERATORS.items():
        add({"model.operator": layers(operator)}, name=name, curve=name)


def sweep_size(add: Callable[..., Any]) -> None:
    for length, pairs in ((64, 4), (128, 8), (256, 16)):
        add({"task": task(length, pairs)}, name=f"length-{length}", curve=f"{length} tokens")


def sweep_width(add: Callable[..., Any]) -> None:
    for overrides in product({"model.width": [64, 128, 256, 512]}):
        add(overrides)


def sweep_rate(add: Callable[..., Any]) -> None:
    for overrides in product({"optimizer.learning_rate": [1e-4, 4.6e-4, 2.2e-3, 1e-2]}):
        add(overrides)
