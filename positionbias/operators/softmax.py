"""Softmax attention: the reference, which takes any mask and bias and whose pattern can be read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.operators.base import ScoreOperator
from positionbias.spec import member


def masked_softmax(found: jax.Array, allowed: jax.Array) -> jax.Array:
    """Softmax over the allowed entries of the last axis; a row with none allowed is zero, and so is its gradient."""
    # The largest finite number, not infinity: a fully masked row must give 0, not 0/0, in value and in gradient.
    floor = jnp.finfo(found.dtype).min
    found = jnp.where(allowed, found, floor)
    top = jax.lax.stop_gradient(jnp.max(found, axis=-1, keepdims=True))
    weights = jnp.where(allowed, jnp.exp(found - top), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


@member("operators", "softmax")
@dataclasses.dataclass(frozen=True)
class Softmax(ScoreOperator):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1); `scaled=False` leaves out 1/sqrt(H)."""

    scaled: bool = True

    def weights(self, scores: jax.Array, allowed: jax.Array) -> jax.Array:
        return masked_softmax(scores, allowed)
