"""What analyses of heads share: taking heads out, some of all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Key
from positionbias.models import edits

HEADS = "layers.*.attention.heads"  # each head's mix of values


def without(layers: list[int], chosen: Bool[jax.Array, "L N"]) -> dict[str, Any]:
    """The edit that sets the outputs of these heads to 0."""
    return {HEADS.replace("*", str(layer)): edits.zero(heads=chosen[i]) for i, layer in enumerate(layers)}


def gated(layers: list[int], gates: Float[jax.Array, "L N"]) -> dict[str, Any]:
    """The edit that multiplies the outputs of heads by gates."""
    return {HEADS.replace("*", str(layer)): edits.scale(gates[i][:, None]) for i, layer in enumerate(layers)}


def top(scores: Float[jax.Array, "L N"], count: int) -> Bool[jax.Array, "L N"]:
    """The `count` heads of the highest scores, the first of equal ones."""
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    return jnp.zeros(scores.size, bool).at[order[:count]].set(True).reshape(scores.shape)


def others(key: Key[jax.Array, ""], taken: Bool[jax.Array, "L N"], count: int) -> Bool[jax.Array, "L N"]:
    """`count` heads at random that are not among those taken."""
    draw = jax.random.uniform(key, taken.shape)
    return top(jnp.where(taken, -1.0, draw), count) & ~taken
