"""Which drivers of kernels compute a model's attentions; calls of those that carry a state are traced, none is run."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.kernels.drivers import noting
from positionbias.masks.base import Mask
from positionbias.models.sites import Sites
from positionbias.operators.asked import some_tokens
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims, Placed, PositionScheme
from positionbias.spec import ConfigError
from positionbias.tokens import Tokens


class Call(NamedTuple):
    """An attention as it is asked."""

    name: str
    operator: Operator
    mask: Mask
    scheme: PositionScheme
    q: Tokens
    k: Tokens
    like: jax.ShapeDtypeStruct  # queries, [B, T, N, H], of all of `q`
    rows: tuple[int, ...] | None = None  # of which rows alone; None for all


def of_attentions(calls: Iterable[Call], dims: Dims, platform: str) -> set[str]:
    """Those of operators that have a choice; ConfigError if one that is named cannot."""
    made: dict[Any, str | None] = {}
    for name, operator, mask, scheme, q, k, like, rows in calls:
        key = operator, mask, scheme, q.length, k.length, rows
        if key in made:
            continue
        params = {p: jnp.zeros(m.shape) for p, m in scheme.layer_parameters(dims).items()}
        told = like, q, k, mask
        if rows is not None:
            some = some_tokens(q, np.asarray(rows))
            shape = like.shape[0], some.length, *like.shape[2:]
            told = jax.ShapeDtypeStruct(shape, like.dtype), some, k, mask.bind(q, k)
        try:
            made[key] = operator.driver(*told, Placed(scheme, params), platform)
        except ConfigError as error:
            raise ConfigError(f"model.operator: in {name}, {error}") from None
    return {driver for driver in made.values() if driver is not None}


def of_recurrence(
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
        if operator.reads == "stream" and rows == columns:
            return operator.mix(given["x"], k, mask, params, Sites())
        if operator.reads == "stream":
            return operator.mix_across(given["x"], given["read"], q, k, mask, params, Sites())
        params |= operator.projected(given["x"], given["read"], params)
        position = Placed(scheme, given["placed"])
        return operator(given["q"], given["k"], given["v"], q, k, mask, position, params, Sites())

    with noting(platform) as found:
        jax.eval_shape(called, arrays)
    return frozenset(found)
