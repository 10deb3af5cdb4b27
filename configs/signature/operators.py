"""DOC

    python -m positionbias.sweep --config configs/signature/operators.py
Hardware and time: 2
Number to reach: 0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from positionbias import spec

# Arguments of operators that cannot do without. Role 1 are the keys of the task.
ARGUMENTS: dict[str, dict[str, int]] = {
    "gated_stochastic": {"width": 8},
    "lookahead": {"most": 2},
    "multimodal_softmax": {"image": 1},
    "neighborhood": {"width": 8},
    "stochastic": {"width": 8},
}
MASKS = {"prefix_linear_attention": "context_bidirectional"}  # it reads the whole context whatever it is asked


def get_config(layers: int = 1) -> ConfigDict:
    return ConfigDict(
        {
            "name": "signature_operators",
            "task": "associative_recall(pairs=16, keys=64, values=64, delays=1, shift=0)",
            "model": {
                "layers": layers,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "none",
                "residual": "none",
                "mlp": False,
            },
            "train": {"steps": 0, "replicas": 8},
            "evaluation": {"items": 256, "influence_items": 256},
        }
    )


def operators(causal: bool) -> Iterator[tuple[str, str]]:
    """Name and spec of every operator that is one of causal, or of noncausal, self attention."""
    for name in spec.names("operators"):
        given: dict[str, Any] = dict(ARGUMENTS.get(name, {}))
        if "causal" in spec.arguments(spec.load_member("operators", name, "model.operator")):
            given["causal"] = causal
        text = f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})"
        if ("causal_self" if causal else "noncausal_self") in spec.build("operators", text, "model.operator").patterns:
            yield name, text


def sweep(add: Callable[..., Any]) -> None:
    for name, operator in operators(causal=True):
        add({"model.operator": operator, "model.mask": MASKS.get(name, "causal")}, name=name)


def sweep_null(add: Callable[..., Any]) -> None:
    for name, operator in operators(causal=False):
        add({"model.operator": operator, "model.mask": "bidirectional"}, name=name)
