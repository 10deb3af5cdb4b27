"""Position schemes that learn a function of the distance."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from positionbias.positions.base import Dims, Matrix, Parameters, PositionScheme
from positionbias.positions.distance import away
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("positions", "fire")
@dataclasses.dataclass(frozen=True)
class FIRE(PositionScheme):
    """A trained function a head of the distance as a share of where the query is (Li et al. 2023, arXiv 2310.04418).

    Adds f_h(psi(|i - j|) / psi(max(L, i))), psi(x) = log(c x + 1); f is an MLP with `width` ReLUs and an output a head.
    c and L are trained, a pair and an f a layer, from `c` and `threshold`. Queries nearer than L see distances only, so
    that L must be in the range of the task's positions for more. The paper has i >= j; keys that come later count by
    their distance, and their share may exceed 1. Ours are: c and L are exponentials of what is trained, so that both
    and psi(max(L, i)) stay above 0, at position 0 too; matrices start from `fan_in`, as do the hidden biases, which
    spreads the kinks of the ReLUs.
    """

    width: int = 32
    c: float = 0.1
    threshold: float = 512.0

    def __post_init__(self) -> None:
        require(1 <= self.width <= 65536, "width", self.width, "a whole number from 1 to 65536")
        require(1e-6 <= self.c <= 1e6, "c", self.c, "a number from 1e-06 to 1000000")
        require(1e-6 <= self.threshold <= 1e6, "threshold", self.threshold, "a number from 1e-06 to 1000000")

    def layer_parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {
            "log_c": Matrix((1,), "fire", 1, f"constant({math.log(self.c)})"),
            "log_threshold": Matrix((1,), "fire", 1, f"constant({math.log(self.threshold)})"),
            "first": Matrix((1, self.width), "fire", 1, "fan_in"),
            "first_bias": Matrix((self.width,), "fire", 1, "fan_in"),
            "second": Matrix((self.width, dims.heads), "fire", self.width, "fan_in"),
            "second_bias": Matrix((dims.heads,), "fire", self.width, "constant(0.0)"),
        }

    def bias(self, q: Tokens, k: Tokens, heads: int, params: Parameters) -> jax.Array:
        made = {name: value.astype(jnp.float32) for name, value in params.items()}
        c, threshold = jnp.exp(made["log_c"]), jnp.exp(made["log_threshold"])
        most = jnp.maximum(threshold, jnp.asarray(q.position).astype(jnp.float32))[..., None, :, :]
        share = jnp.log1p(c * away(q, k)) / jnp.log1p(c * most)  # [..., 1, T, S]
        hidden = jax.nn.relu(share[..., None] * made["first"][0] + made["first_bias"])
        found = hidden @ made["second"] + made["second_bias"]  # [..., 1, T, S, N]
        return jnp.moveaxis(found, -1, -4)[..., 0, :, :]
