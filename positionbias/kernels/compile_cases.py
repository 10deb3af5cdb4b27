"""What `compile_targets` compiles: attentions that between them use all that a fused driver has.

Each case is a function of arrays whose shapes are known and whose values are not, as when a training step is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Mapped
from positionbias.kernels.aux import PerHead, PerKey, PerQuery, Relative, Scalar
from positionbias.kernels.softmax_attention.call import posed
from positionbias.kernels.softmax_attention.ladder import DRIVERS
from positionbias.kernels.softmax_attention.problem import STATS, Problem

BATCH, HEADS, GROUPS = 2, 4, 2
ROWS, COLUMNS = 300, 260  # three tiles of 128 each, the last of them ragged
REPLICAS = 2
Shapes = tuple[tuple[tuple[int, ...], Any], ...]
TABLE = np.random.default_rng(0).random((ROWS, COLUMNS)) < 0.5


class RefusedError(Exception):
    """A driver says beforehand that it cannot do a case."""


def _causal(b: Mapped, h: Mapped, q: Mapped, k: Mapped) -> Mapped:
    return k <= q


def _looked_up(b: Mapped, h: Mapped, q: Mapped, k: Mapped) -> Mapped:
    return jnp.asarray(TABLE)[q, k]


def _score(s: Any, b: Any, h: Any, q: Any, k: Any, slope: Any, row: Any, key: Any, cap: Any) -> Any:
    """Reads an operand of every kind, caps what it finds, and chooses by the score."""
    s = s - slope * jnp.abs(q - k) + row * key
    return jnp.where(s > 0, cap * jnp.tanh(s / cap), s)


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention; `told(*more)` gives the arguments of the call that the arrays `more` are for."""

    name: str
    more: Shapes = ()
    told: Callable[..., dict[str, Any]] = dict
    grouped: bool = False
    gradient: bool = True
    replicas: bool = False

    drivers = ("mosaic_tpu", "mosaic_gpu", "xla_dense", "xla_chunked")

    def takes(self, driver: str, dtype: str) -> bool:
        """Whether a driver does it for such queries."""
        return True

    def shapes(self, dtype: Any, head: int) -> list[tuple[tuple[int, ...], Any]]:
        """Of all arguments: q, k, v and what the case reads more."""
        groups = GROUPS if self.grouped else HEADS
        q, k = (BATCH, ROWS, HEADS, head), (BATCH, COLUMNS, groups, head)
        found = [(q, dtype), (k, dtype), (k, dtype), *self.more]
        return [((REPLICAS, *shape), kind) for shape, kind in found] if self.replicas else found

    def function(self, driver: str, platform: str) -> Callable[..., Any]:
        """A loss of the driver's outputs and statistics, or its value and gradients."""

        def loss(q: jax.Array, k: jax.Array, v: jax.Array, *more: jax.Array) -> jax.Array:
            o, stats = _run(driver, platform, posed(q, k, v, **self.told(*more)))
            total = jnp.sum(o.astype(jnp.float32))
            return total + sum(jnp.sum(jnp.square(x)) for x in stats if x is not None)

        def whole(*arrays: jax.Array) -> jax.Array:
            return jnp.sum(jax.vmap(loss)(*arrays)) if self.replicas else loss(*arrays)

        if not self.gradient:
            return whole
        kinds = [jnp.dtype(kind) for _, kind in self.shapes(jnp.float32, 1)]
        return jax.value_and_grad(whole, tuple(i for i, kind in enumerate(kinds) if kind == jnp.float32))


def _run(driver: str, platform: str, asked: Problem) -> Any:
    why = DRIVERS[driver].unsupported_reason(asked, platform)
    if why is not None:
        raise RefusedError(why)
    return DRIVERS[driver].run(asked)


def _masked_by_length(lengths: jax.Array) -> dict[str, Any]:
    return {"mask": lambda b, h, q, k: k < lengths[b]}


def _scored(slope: Any, row: Any, key: Any, cap: Any, bias: Any) -> dict[str, Any]:
    aux = {"slope": PerHead(slope), "row": PerQuery(row), "key": PerKey(key), "cap": Scalar(cap)}
    return {"score": _score, "aux": aux, "key_bias": bias}


def _by_difference(table: Any) -> dict[str, Any]:
    return {"mask": _causal, "score": lambda s, b, h, q, k, table: s + table, "aux": {"table": Relative(table)}}


def _by_pair(table: Any) -> dict[str, Any]:
    return {"mask": _causal, "score": lambda s, b, h, q, k: s + table[h, q, k]}


def _replicated(slope: Any, seed: Any) -> dict[str, Any]:
    return {
        "mask": _causal,
        "score": lambda s, b, h, q, k, slope: s - slope * jnp.abs(q - k),
        "aux": {"slope": PerHead(slope)},
        "dropout": (0.1, seed),
        "stats": STATS,
    }


CASES: Sequence[Case] = (
    Case("forward", told=lambda: {"mask": _causal}, gradient=False),
    Case("gradient", told=lambda: {"mask": _causal}),
    Case("all statistics", told=lambda: {"mask": _causal, "stats": STATS}),
    Case("grouped heads", told=lambda: {"mask": _causal, "stats": ("received",)}, grouped=True),
    Case(
        "rule on scores",
        (
            ((HEADS,), jnp.float32),
            ((ROWS,), jnp.float32),
            ((BATCH, COLUMNS), jnp.float32),
            ((), jnp.float32),
            ((BATCH, HEADS, COLUMNS), jnp.float32),
        ),
        _scored,
    ),
    Case("dropout", (((), jnp.int32),), lambda seed: {"dropout": (0.1, seed)}),
    Case("mask from a table", told=lambda: {"mask": _looked_up}),
    Case(
        "learned table of differences",
        (((HEADS, ROWS + COLUMNS - 1), jnp.float32),),
        _by_difference,
    ),
    Case("learned number for each pair", (((HEADS, ROWS, COLUMNS), jnp.float32),), _by_pair),
    Case("mask of traced lengths", (((BATCH,), jnp.int32),), _masked_by_length),
    Case("not normalised", told=lambda: {"mask": _causal, "normalise": False, "stats": ("received", "block_mass")}),
    Case("replicas", (((HEADS,), jnp.float32), ((), jnp.int32)), _replicated, replicas=True),
)
