"""Rectified scores as weights."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from positionbias.arrays import Mapped
from positionbias.operators.base import ScoreOperator
from positionbias.spec import member

Count = Literal["visible", "length"]


@member("operators", "relu_attention")
@dataclasses.dataclass(frozen=True)
class ReluAttention(ScoreOperator):
    """Each value is weighted by relu(score) / n, n the number of keys; nothing is normalised over them.

    Wortsman et al. 2023 (arXiv 2309.08586), whose n is the length of a sequence that all see whole. What n is under
    masks is ours: the keys that the query may see (`count='visible'`), or all there are, padding too ('length'). The
    kernel has weights that are exponentials, which relu is not: it is not used.
    """

    count: Count = "visible"
    scaled: bool = True

    def weights(self, scores: jax.Array, allowed: Mapped) -> jax.Array:
        return jnp.where(allowed, jax.nn.relu(scores), 0.0) / counted(self.count, allowed)


def counted(count: Count, allowed: Mapped) -> jax.Array:
    """How many keys a query has, at least 1, as float32 [..., T, 1], of booleans [..., T, S].

    By numpy where these are known: XLA takes long to fold so large a sum.
    """
    if count == "length":
        return jnp.full((1, 1), allowed.shape[-1], jnp.float32)
    return jnp.maximum(allowed.sum(axis=-1, keepdims=True), 1).astype(jnp.float32)
