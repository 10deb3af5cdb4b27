"""Keys and values that are kept while a sequence is generated, so that every row is read once.

A sequence has all its S rows from the start, their tokens known; which of them were read so far is told by nothing but
the order of the calls: a row is read before any that may see it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.operators.asked import Asked


class Kept(NamedTuple):
    """What one attention made of the rows read so far; zero elsewhere."""

    key: Float[jax.Array, "B S N H"]
    value: Float[jax.Array, "B S N K"]


def written(into: Float[jax.Array, "B S ..."], new: Float[jax.Array, "B T ..."], rows: jax.Array) -> jax.Array:
    """`into` with the `rows` i32[B, T] that are among its own replaced."""
    return into.at[jnp.arange(len(new))[:, None], rows].set(new, mode="drop")


def kept_with(kept: Kept | None, key: jax.Array, value: jax.Array, asked: Asked) -> Kept:
    """`kept`, or nothing yet, with the keys and values of the rows asked."""
    if kept is None:
        kept = Kept(*(jnp.zeros((len(x), asked.tokens.length, *x.shape[2:]), x.dtype) for x in (key, value)))
    assert asked.rows is not None
    return Kept(written(kept.key, key, asked.rows), written(kept.value, value, asked.rows))
