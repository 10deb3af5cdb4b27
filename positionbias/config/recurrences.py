"""Which drivers of kernels compute the operators that carry a state: calls are traced, and nothing is computed."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.kernels.drivers import noting
from positionbias.masks.base import Mask
from positionbias.models.sites import Sites
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims, Placed, PositionScheme
from positionbias.tokens import Tokens


def drivers(
    operator: Operator, mask: Mask, scheme: PositionScheme, q: Tokens, k: Tokens, dims: Dims, like: Any, platform: str
) -> frozenset[tuple[str, str]]:
    """Kernels and drivers that a call of the operator asks, for queries of the shape and type of `like`, [B, T, N, H].

    That of its window is `softmax_attention`; there are none of an operator that carries nothing.
    """
    if not operator.carries:
        return frozenset()
    return _asked(operator, mask, scheme, _Same(q), _Same(k), dims, like, platform)


class _Same:
    """Tokens, numpy [T], that are equal where all their fields are."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self._told = tuple(field.tobytes() for field in tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._told == other._told

    def __hash__(self) -> int:
        return hash(self._told)


@functools.lru_cache(maxsize=256)  # of a sweep's cells most are alike
def _asked(
    operator: Operator,
    mask: Mask,
    scheme: PositionScheme,
    rows: _Same,
    columns: _Same,
    dims: Dims,
    like: Any,
    platform: str,
) -> frozenset[tuple[str, str]]:
    (batch, *_), kind = like.shape, like.dtype
    q, k, placed = rows.tokens, columns.tokens, scheme.layer_parameters(dims)
    arrays: dict[str, Any] = {
        "x": jax.ShapeDtypeStruct((batch, q.length, dims.width), kind),
        "read": jax.ShapeDtypeStruct((batch, k.length, dims.width), kind),
        "q": like,
        "k": jax.ShapeDtypeStruct((batch, k.length, dims.heads, dims.head_size), kind),
        "v": jax.ShapeDtypeStruct((batch, k.length, dims.heads, dims.values), kind),
        "params": {n: jax.ShapeDtypeStruct(m.shape, jnp.float32) for n, m in operator.parameters(dims).items()},
        "placed": {n: jax.ShapeDtypeStruct(m.shape, jnp.float32) for n, m in placed.items()},
    }

    def called(given: dict[str, Any]) -> jax.Array:
        params = given["params"]
        if operator.reads == "stream":
            return operator.mix(given["x"], k, mask, params, Sites())
        params |= operator.projected(given["x"], given["read"], params)
        position = Placed(scheme, given["placed"])
        return operator(given["q"], given["k"], given["v"], q, k, mask, position, params, Sites())

    with noting(platform) as found:
        jax.eval_shape(called, arrays)
    return frozenset(found)
