"""What operators cost: the matrix products of their programs and the numbers that they keep, for a table of BUILD.md.

The operator of one layer alone, on queries, keys and values of 4 heads of 16 and a stream of 64 features. The matrices
around it, the same for all that read queries, keys and values, are in none of it. `benchmarks/operators.py` measures
time and memory of the same programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from positionbias import spec
from positionbias.arrays import Tree
from positionbias.masks.base import Mask
from positionbias.models.sites import Sites
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import Tokens, sequential

HEADS, SIZE = 4, 16
LENGTHS = 1024, 4096  # tokens, of the table


def operators(arguments: Mapping[str, str], names: Iterable[str] | None = None) -> dict[str, Operator]:
    """Every operator, or those named, with `arguments` where it needs some, in its causal form where it has one."""
    found = {}
    for name in spec.names("operators") if names is None else names:
        told = [arguments[name]] if name in arguments else []
        if "causal" in spec.arguments(spec.load_member("operators", name, "--operators")):
            told.append("causal=True")
        found[name] = spec.build("operators", f"{name}({', '.join(told)})", "--operators")
    return found


def dims_of(length: int) -> Dims:
    """The sizes of the layer."""
    return Dims(width=HEADS * SIZE, heads=HEADS, head_size=SIZE, length=length)


def forward(operator: Operator, length: int) -> Callable[[Tree], jax.Array]:
    """What an operator makes of the arrays that it reads: the stream, queries, keys, values, parameters (`drawn`).

    The first half of the tokens are the context, which few operators ask for.
    """
    tokens = sequential(length, context=(np.arange(length) < length // 2).astype(np.int32))
    return lambda arrays: mixed(operator, tokens, arrays)


def drawn(operator: Operator, dims: Dims) -> Tree:
    """Random arrays of what the operator reads."""
    keys = iter(jax.random.split(jax.random.key(0), 64))
    shape = (1, dims.length, dims.heads, dims.head_size)
    arrays: dict[str, Any] = {"x": jax.random.normal(next(keys), (1, dims.length, dims.width))}
    if operator.reads == "qkv":
        arrays |= {name: jax.random.normal(next(keys), shape) for name in ("q", "k", "v")}
    arrays["params"] = {
        name: jax.random.normal(next(keys), matrix.shape) / math.sqrt(matrix.shape[0])
        for name, matrix in operator.parameters(dims).items()
    }
    return arrays


def mixed(operator: Operator, tokens: Tokens, arrays: Tree, mask: Mask | None = None) -> jax.Array:
    """What the operator makes, with what it makes of the stream first; of self attention, causal where it can be."""
    if mask is None:
        mask = spec.build("masks", "causal" if "causal_self" in operator.patterns else "bidirectional", "mask")
    x, params, position = arrays["x"], arrays["params"], Placed(spec.build("positions", "none", "position"))
    if operator.reads == "stream":
        return operator.mix(x, tokens, mask, params, Sites())
    params = params | operator.projected(x, x, params)
    return operator(arrays["q"], arrays["k"], arrays["v"], tokens, tokens, mask, position, params, Sites())


def table(found: Mapping[str, Operator]) -> str:
    """What these operators cost at `LENGTHS`, in Markdown, a line each."""
    few, many = LENGTHS
    lines = [
        f"| operator | kept after {few} tokens | after {many} | products a token of {few} | of {many} | grow as |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| `{spec.canonical(one)}` | " + " | ".join(line(one)) + " |" for one in found.values()]
    return "\n".join(lines)


def line(one: Operator) -> list[str]:
    """What an operator costs: the numbers kept at `LENGTHS`, the products of a token, and how all of them grow."""
    kept, counted = [], []
    for length in LENGTHS:
        dims = dims_of(length)
        shapes = jax.eval_shape(lambda dims=dims: drawn(one, dims))
        kept.append(one.state_size(dims))
        counted.append(products(jax.make_jaxpr(forward(one, length))(shapes)))
    shares = [x / length for x, length in zip(counted, LENGTHS, strict=True)]
    power = math.log(counted[1] / counted[0], LENGTHS[1] / LENGTHS[0]) if min(counted) > 0 else math.nan
    return [*(f"{x:,.0f}" for x in (*kept, *shares)), f"T^{power:.2f}" if power == power else "-"]


def products(program: Any) -> float:
    """Multiplications and additions of the matrix products and convolutions of a `jax.make_jaxpr`, loops in full.

    2 for each pair of numbers multiplied. XLA's own count (`cost_analysis`) has every loop once. A branch counts as the
    longest of its kind; nan where a loop does not say how often it runs.
    """
    total = 0.0
    for equation in getattr(program, "jaxpr", program).eqns:
        name, params = equation.primitive.name, equation.params
        inner = [products(one) for one in jaxprs_in_params(params)]
        if name == "dot_general":
            shape, ((contracted, _), _) = equation.invars[0].aval.shape, params["dimension_numbers"]
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            channels = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * math.prod(kernel) / channels
        elif name == "scan":
            total += params["length"] * sum(inner)
        elif name == "while":
            total += math.nan if sum(inner) else 0.0
        elif name == "cond":
            total += max(inner)
        else:
            total += sum(inner)
    return total
