"""Squared error on the vector each row should give."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import WITHIN, Int
from positionbias.objectives.base import Objective
from positionbias.spec import member
from positionbias.tasks.base import Condition, Task


@member("objectives", "squared_error")
@dataclasses.dataclass(frozen=True)
class SquaredError(Objective):
    """Squared error summed over features, as Alur et al. 2025 (arXiv 2509.24125) train bit vectors.

    A row is right if every feature is within 1/2 of its target, which for bits is rounding. Its log-probability is
    that of a Gaussian of unit variance around the output.
    """

    targets = "vectors"

    def trained_rows(self, task: Task, condition: Condition) -> Int[np.ndarray, "Q"] | None:
        return task.query_rows(condition)

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(outputs - targets), axis=-1)

    def right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.all(jnp.abs(outputs - targets) < WITHIN, axis=-1)

    def said(self, outputs: jax.Array) -> jax.Array:
        return jnp.round(outputs)

    def log_probability(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return -0.5 * (self.losses(outputs, targets) + outputs.shape[-1] * math.log(2 * math.pi))
