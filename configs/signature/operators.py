"""The position signature of every operator: what the last output depends on before anything is trained.

    python -m positionbias.sweep --config configs/signature/operators.py
    python -m positionbias.sweep --config configs/signature/operators.py --sweep null
    python -m positionbias.sweep --config configs/signature/operators.py --sweep depth
    python scripts/signatures.py SWEEP_FOLDER signatures         # draws docs/signatures.png and keeps its numbers; of
                                                                 # "null" signatures_null, where two more are

One layer that is nothing but its operator (no residual, no MLP, no positions told) reads 16 pairs and a key, 33 tokens
in all, and is not trained: train.steps is 0. The report has the influence of every position on the output at the last,
a panel an operator, and its indices, in shares of which each position has one if all matter alike: 33 times what
summary.json says, whose influences add up to 1. Primacy, the first quarter minus the middle, is the operator's own;
recency and tilt also hold the last token, which asks, and so counts about 12 shares in whatever makes queries of it.
`--cells softmax,retention` runs some of the cells, called as the operators are. With the command line's
`--config.model.residual=add --config.model.mlp=True` layers are whole. "null" has a bidirectional mask, for the
operators that take one: what stays there is chance, a window or a pattern of the operator's own, not its order.
"depth" has four layers of some under either mask.

Measured over eight replicas was a primacy of

    0, flat      -0.007 [-0.025, 0.012] softmax, and by the same weights depth_causal, even_softmax, hyper_attention (up
                 to 64 tokens) and lookahead; of softmax_plus_one, sigmoid_attention, relu_attention, linear_scores,
                 linear_attention, lightnet, multimodal_softmax, prefix_linear_attention, combiner and routing
                 intervals hold 0 too, and of attention_free (0.003 [-0.002, 0.007]) and fourier, whose last tokens
                 count no more than others
    decay        -0.269 [-0.272, -0.266] gated_slot, -0.189 [-0.195, -0.184] gated_linear_attention, -0.457 [-0.463,
                 -0.451] lawcat, -0.310 [-0.332, -0.288] delta, -0.142 [-0.176, -0.108] gated_delta, -0.09 [-0.10,
                 -0.08] retention, -0.003 [-0.004, -0.002] mamba2 and -0.02 [-0.06, 0.02] md_tpe, which by then have
                 forgotten the middle too
    window       -0.724 [-0.759, -0.689] based, -0.56 orthogonal_memory and titans, -0.02 [-0.03, -0.01] chunk_hybrid;
                 associative_memory, neighborhood and short_convolution see no further than their 3, 8 and 3 tokens
    products     +0.275 [+0.255, +0.295] hla3, +0.043 [+0.021, +0.064] ahla, -0.124 [-0.137, -0.112] hla2: early tokens
                 enter more, or fewer, of the products that they sum
    patterns     power, stochastic, gated_stochastic and superlinear see what they choose, shared_prompt its own
                 segment, here the last token

Under the bidirectional mask the primacy of hla3, ahla and hla2 is gone (0.01, 0.00 and 0.00, intervals that hold 0), as
it comes from the causal order; of all that mix every pair none is further from 0 than 0.02. The mask makes the front
matter where layers are stacked: at four layers primacy is 4.06 [4.06, 4.06] for attention_free, 3.94 [3.93, 3.95] for
softmax and 4.05 [4.05, 4.06] for linear_attention, whose first token has more than half of all influence, and 0.00,
-0.01 and 0.00 (within 0.03) with a bidirectional one; decay undoes it, 0.19 [-0.13, 0.51] for gated_delta.

Hardware and time: 2 CPU cores, about 10 minutes for 40 cells, 10 for the 30 of "null", and 3 for the 7 of "depth" (with
other work on the machine; nearly all of it is compilation). Numbers to reach: primacy within 0.05 of 0 for softmax and
attention_free and below -0.1 for gated_linear_attention; at four layers above 3 for softmax, within 0.05 of 0 without
the causal mask.
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


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "signature_operators",
            "task": "associative_recall(pairs=16, keys=64, values=64, delays=1, shift=0)",
            "model": {
                "layers": 1,
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


def sweep_depth(add: Callable[..., Any]) -> None:
    for operator in ("attention_free", "softmax", "linear_attention", "gated_delta"):
        add({"model.operator": operator, "model.layers": 4}, name=f"{operator}_causal")
    for operator in ("attention_free", "softmax", "linear_attention"):
        deep = {"model.operator": operator, "model.layers": 4, "model.mask": "bidirectional"}
        add(deep, name=f"{operator}_bidirectional")
