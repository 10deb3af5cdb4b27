"""Position schemes that rotate queries and keys."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.positions.base import Dims, Parameters, PositionScheme, Side, needs_even
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("positions", "rope")
@dataclasses.dataclass(frozen=True)
class RoPE(PositionScheme):
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864): pair m of q and k turns by t * base^(-2m/H).

    Pairs are neighbours (2m, 2m+1); the score of a rotated query and key depends on positions only through i - j.
    """

    base: float = 10000.0

    def __post_init__(self) -> None:
        require(self.base > 1, "base", self.base, "a number above 1")

    def check(self, dims: Dims) -> None:
        needs_even("rope", dims.head_size, "head size (model.width / model.heads)")

    def rotate(self, x: jax.Array, tokens: Tokens, params: Parameters, side: Side) -> jax.Array:
        size, position = x.shape[-1], jnp.asarray(tokens.position)
        frequency = self.base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
        angle = position[..., None, None].astype(jnp.float32) * frequency  # [..., T, 1, H/2]
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], size // 2, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
        return turned.reshape(x.shape).astype(x.dtype)
