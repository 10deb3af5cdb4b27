"""The attentions that are timed: sizes, arrays and masks, for the package and, where these tell it, for others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import tokens
from positionbias.masks.base import EMPTY, FULL, PARTIAL, Mask
from positionbias.masks.drawn import RandomGraph
from positionbias.masks.groups import Segments
from positionbias.masks.order import Causal, Prefix, SlidingWindow
from positionbias.masks.sparse import PowerOfTwo

TILE = 128  # queries and keys of a tile: that of the package unless told, and of FlexAttention
WINDOW = 256
DOCUMENTS = 8  # in a sequence


@dataclasses.dataclass(frozen=True)
class RandomBlocks(Mask):
    """`random_graph` between blocks of `TILE` tokens: whole tiles are seen or not."""

    p: float

    def allowed(self, q: tokens.Tokens, k: tokens.Tokens) -> Any:
        rows, columns = (side._replace(index=side.index // TILE) for side in (q, k))
        return RandomGraph(self.p).allowed(rows, columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One mask at one size: q, k, v [B, T, N, H], and `w` by which a loss weighs outputs."""

    name: str
    mask: Mask | None
    tokens: tokens.Tokens
    q: jax.Array
    k: jax.Array
    v: jax.Array
    w: jax.Array
    key_weights: jax.Array  # [T]: a penalty weighs the attention received by them

    @property
    def length(self) -> int:
        """T."""
        return int(self.q.shape[1])

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        """What a program reads: q, k, v, and by what losses weigh outputs and the attention received."""
        return self.q, self.k, self.v, self.w, self.key_weights

    @property
    def causal(self) -> bool:
        """Whether keys behind a query are all hidden."""
        return self.name not in ("none", "prefix")

    @functools.cached_property
    def tiles(self) -> dict[str, int]:
        """How many tiles there are, of each class; of one example and head."""
        shape = -(-self.length // TILE), -(-self.length // TILE)
        found = np.full(shape, FULL) if self.mask is None else self.mask.blocks(self.tokens, self.tokens, (TILE, TILE))
        return {"empty": int((found == EMPTY).sum())} | {
            name: int((found == kind).sum()) for name, kind in (("partial", PARTIAL), ("full", FULL))
        }

    @property
    def visible(self) -> float:
        """The share of tiles with a pair that is allowed."""
        return 1 - self.tiles["empty"] / sum(self.tiles.values())

    def dense(self) -> np.ndarray:
        """The whole mask [T, T]."""
        assert self.mask is not None
        return np.asarray(self.mask.dense(self.tokens, self.tokens))

    def traced(self) -> jax.Array:
        """The whole mask [T, T], worked out in the program and not before."""
        assert self.mask is not None
        side = jax.lax.optimization_barrier(jax.tree.map(jnp.asarray, self.tokens))
        return jnp.asarray(self.mask.dense(side, side))


def _documents(length: int) -> np.ndarray:
    """The document of each token: `DOCUMENTS` of lengths drawn once for each `length`."""
    ends = np.random.default_rng(length).choice(np.arange(1, length), min(DOCUMENTS, length) - 1, replace=False)
    return np.searchsorted(np.sort(ends), np.arange(length), side="right").astype(np.int32)


MASKS: dict[str, Callable[[int], Mask | None]] = {
    "causal": lambda length: Causal(),
    "none": lambda length: None,
    "window": lambda length: Causal() & SlidingWindow(WINDOW),
    "documents": lambda length: Causal() & Segments(),
    "prefix": lambda length: Prefix(length // 4),
    "power_of_two": lambda length: Causal() & PowerOfTwo(),
    "random_blocks": lambda length: Causal() & RandomBlocks(0.1),
}


def problem(name: str, length: int, batch: int, heads: int, size: int, dtype: Any) -> Problem:
    """The problem of a mask, with arrays drawn from a fixed seed."""
    shape = batch, length, heads, size
    q, k, v, w = (jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 4))
    told = tokens.sequential(length, segment=_documents(length))
    weights = jnp.asarray(np.random.default_rng(0).normal(size=length), jnp.float32)
    return Problem(name, MASKS[name](length), told, q, k, v, w, weights)
