"""The rows that one call is about, of a sequence that is read row after row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Shaped
from positionbias.masks.base import Mask
from positionbias.masks.order import Bidirectional, Causal
from positionbias.tokens import Tokens, running_most


class Asked(NamedTuple):
    """The rows of one call."""

    rows: Int[jax.Array, "B T"] | None  # their places; S and beyond are none, and what is made of them is dropped
    tokens_q: Tokens  # [..., T]
    tokens: Tokens  # of the whole sequence, [..., S]
    mask: Mask  # bound to it

    @classmethod
    def of(cls, rows: Int[jax.Array, "B T"], tokens: Tokens, mask: Mask) -> Asked:
        """The rows `rows` of a sequence of `tokens`."""
        return cls(rows, taken(tokens, rows), tokens, mask.bind(tokens, tokens))

    @classmethod
    def all(cls, tokens: Tokens, mask: Mask) -> Asked:
        """Every row, in the order stored; their places are told by None."""
        return cls(None, tokens, tokens, mask.bind(tokens, tokens))

    @property
    def length(self) -> int:
        """S, of the whole sequence."""
        return self.tokens.length

    def sees_back(self, lag: int) -> Bool[jax.Array, "... T"]:
        """Whether each row may see the one `lag` places before it."""
        if self.rows is None:
            front, back = self.tokens.cut(lag, self.length), self.tokens.cut(0, self.length - lag)
            seen = jnp.asarray(self.mask.allowed(front, back) & front.valid & back.valid)
            return jnp.pad(seen, [(0, 0)] * (seen.ndim - 1) + [(lag, 0)])
        back = taken(self.tokens, self.rows - lag)
        return self.mask.allowed(self.tokens_q, back) & self.tokens_q.valid & back.valid & (self.rows >= lag)

    def resets(self) -> Bool[jax.Array, "... T"] | None:
        """Which rows begin a segment: they may not see the row before them, of those that are no padding.

        None where the mask tells that there are none, before anything is computed.
        """
        if isinstance(self.mask, Causal | Bidirectional):
            return None
        tokens = self.tokens
        xp = tokens.valid.__array_namespace__()
        last = running_most(xp.where(tokens.valid, np.arange(self.length), -1))
        before = xp.concat([last[..., :1] * 0 - 1, last[..., :-1]], axis=-1)
        back = taken(tokens, before) if before.ndim > 1 else Tokens(*(field[..., before] for field in tokens))
        found = ~self.mask.allowed(tokens, back) & tokens.valid & (before >= 0)
        if isinstance(found, np.ndarray) and not found.any():
            return None
        found = jnp.asarray(found)
        if self.rows is None:
            return found
        found = jnp.broadcast_to(found, (len(self.rows), self.length))
        return jnp.take_along_axis(found, self.rows, axis=-1, mode="clip")


def taken(tokens: Tokens, rows: Int[jax.Array, "B T"]) -> Tokens:
    """The tokens, [B, T], of these rows of [B, S]."""
    spread = (jnp.broadcast_to(field, (len(rows), tokens.length)) for field in tokens)
    return Tokens(*(jnp.take_along_axis(field, rows, axis=-1, mode="clip") for field in spread))


def some_rows(x: Shaped[jax.Array, "B T ..."], rows: Int[np.ndarray, "Q"] | None) -> Shaped[jax.Array, "B Q ..."]:
    """Static `rows`, None for all; neighbours in order as a slice, whose gradient is no scatter."""
    if rows is None:
        return x
    first, count = int(rows[0]), len(rows)
    return x[:, first : first + count] if np.array_equal(rows, first + np.arange(count)) else x[:, rows]


def some_tokens(tokens: Tokens, rows: Int[np.ndarray, "Q"] | None) -> Tokens:
    """The tokens of static `rows`, None for all: numpy where they are."""
    return tokens if rows is None else Tokens(*(field[..., rows] for field in tokens))


def with_before(
    x: Float[jax.Array, "B T ..."], before: Float[jax.Array, "B W ..."] | None, size: int
) -> tuple[Float[jax.Array, "B W+T ..."], Float[jax.Array, "B W ..."]]:
    """Rows with the `size` before them in front, zeros where there are none, and the last `size` of all of these."""
    if before is None:
        before = jnp.zeros((len(x), size, *x.shape[2:]), x.dtype)
    joined = jnp.concatenate([before, x], axis=1)
    return joined, joined[:, joined.shape[1] - size :]
