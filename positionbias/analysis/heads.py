"""What analyses of heads share: taking heads out, some of all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from positionbias.analysis.base import sites
from positionbias.arrays import Bool, Float, Key
from positionbias.models import edits

HEADS = "layers.*.attention.heads"  # each head's mix of values


def without(layers: list[int], chosen: Bool[jax.Array, "L N"]) -> dict[str, Any]:
    """The edit that sets the outputs of these heads to 0."""
    return {name: edits.zero(heads=chosen[i]) for i, name in enumerate(sites(layers, HEADS))}


def gated(layers: list[int], gates: Float[jax.Array, "L N"]) -> dict[str, Any]:
    """The edit that multiplies the outputs of heads by gates."""
    return {name: edits.scale(gates[i][:, None]) for i, name in enumerate(sites(layers, HEADS))}


def top(scores: Float[jax.Array, "L N"], count: int) -> Bool[jax.Array, "L N"]:
    """The `count` heads of the highest scores, the first of equal ones."""
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    return jnp.zeros(scores.size, bool).at[order[:count]].set(True).reshape(scores.shape)


def others(key: Key[jax.Array, ""], taken: Bool[jax.Array, "L N"], count: int) -> Bool[jax.Array, "L N"]:
    """`count` heads at random that are not among those taken."""
    draw = jax.random.uniform(key, taken.shape)
    return top(jnp.where(taken, -1.0, draw), count) & ~taken
