"""A matrix and a bias: of one input, or of one for each of the parts that it makes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from positionbias.arrays import Float, rows_times
from positionbias.models.parameters import Blueprint, Noise
from positionbias.positions.base import Matrix


class Dense(nnx.Module):
    """x W (+ b), W [in, out]."""

    def __init__(self, blueprint: Blueprint, kind: str, size_in: int, size_out: int, noise: Noise) -> None:
        self.weight = blueprint.create(Matrix((size_in, size_out), kind, size_in), noise)
        self.bias = blueprint.variable(jnp.zeros(size_out), kind) if blueprint.config.bias else None

    def __call__(self, x: Float[jax.Array, "... I"]) -> Float[jax.Array, "... O"]:
        return self.shifted(rows_times(x, self.weight[...]))

    def shifted(self, y: Float[jax.Array, "... O"]) -> Float[jax.Array, "... O"]:
        """With the bias, if there is one."""
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def each(self, x: Float[jax.Array, "B T N I"]) -> Float[jax.Array, "B T N H"]:
        """The outputs in N equal parts, O = N H, each made of inputs of its own."""
        parts = self.weight[...].astype(x.dtype).reshape(x.shape[-1], x.shape[2], -1)
        y = jnp.einsum("BTNI,INH->BTNH", x, parts)
        return self.shifted(y.reshape(*y.shape[:2], -1)).reshape(y.shape)
