"""Recall by every registered operator: at the ceiling of what it declares to see, and no further.

    python -m positionbias.sweep --config configs/recall/every.py

The task and the model of `configs/recall/operators.py`, with heads of 32, so that states are large enough. Windows and
blocks are shorter than the 64 tokens, so that some values lie within reach and some beyond: the ceiling is what an
ideal observer of what both layers see would score, 1 for values within reach and a guess for the others. It is made of
what operators declare, not of what they were found to do. How a state that is too small falls short is measured there.

Rules that were fixed before the run, one recipe for all:

    reach     mean within 0.05 of the ceiling, and so at least 0.95 for what sees all, for all but the blind
    near      at distances whose ceiling is above 0.95, mean at least 0.95, for all but the blind: short_convolution and
              associative_memory see 5 tokens in all, so that the rule above says nothing of them
    blind     attention_free, fourier and md_tpe, whose weights read no content: mean at most the order-free baseline +
              0.05

Hardware and time: 2 CPU cores, a cell for every operator, of four replicas; to be measured. Numbers to reach: 0.05
below the ceiling, and the rule of the blind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from positionbias import spec

# Arguments of operators that cannot do without, or whose defaults would reach all 64 tokens.
ARGUMENTS = {
    "based": "window=8",
    "chunk_hybrid": "chunk=8",
    "gated_slot": "slots=32",
    "gated_stochastic": "width=16, window=16",
    "hyper_attention": "block=8, samples=8, exact=16",
    "lookahead": "most=2",
    "multimodal_softmax": "image=1",  # role 1 are the keys
    "neighborhood": "width=32, causal=True",
    "orthogonal_memory": "window=8",
    "power": "window=8",
    "stochastic": "width=16",
    "titans": "window=8",
}
MASKS = {
    "prefix_linear_attention": "context_bidirectional",  # it reads the whole context whatever it is asked
    "reversed": "bidirectional",  # none of causal attention, nor is the next; answers are not among the inputs
    "varied_window": "bidirectional",
}


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "recall_every",
            "task": "associative_recall(pairs=8, keys=32, values=32, queries=8, delays=48, shift=0)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 2,
                "head_size": 32,
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


def layers(operator: str) -> str:
    """The convolution that every model has, and the operator behind it."""
    return f"[short_convolution(width=3, gated=True), {operator}]"


def sweep(add: Callable[..., Any]) -> None:
    for name in spec.names("operators"):
        operator = f"{name}({ARGUMENTS.get(name, '')})"
        add({"model.operator": layers(operator), "model.mask": MASKS.get(name, "causal")}, name=name)
