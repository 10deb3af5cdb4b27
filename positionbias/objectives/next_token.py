"""Cross-entropy on the target of each row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from positionbias.objectives.base import Objective
from positionbias.spec import member


@member("objectives", "next_token")
@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Cross-entropy (nats) of the token each row should say, on the rows that the task weights."""

    targets = "tokens"

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)

    def right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return self.said(outputs) == targets

    def said(self, outputs: jax.Array) -> jax.Array:
        return jnp.argmax(outputs, axis=-1)

    def log_probability(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return -self.losses(outputs, targets)
