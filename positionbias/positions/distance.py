"""Position schemes that add a penalty for distance to the score."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from positionbias.positions.base import Parameters, PositionScheme
from positionbias.spec import member, require
from positionbias.tokens import Tokens


def alibi_slopes(heads: int) -> list[float]:
    """Slopes 2^(-8h/N), h = 1..N, of ALiBi (Press et al. 2021, arXiv 2108.12409, section 3).

    For a number of heads that is no power of two: the slopes of the next lower power, then every other slope of its
    double.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
    between = [2.0 ** (-8.0 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)]
    return slopes + between[: heads - power]


def away(q: Tokens, k: Tokens) -> jax.Array:
    """|i - j| with a head axis, [..., 1, T, S]."""
    return jnp.abs(jnp.asarray(q.position) - jnp.asarray(k.position)).astype(jnp.float32)[..., None, :, :]


@member("positions", "alibi")
@dataclasses.dataclass(frozen=True)
class ALiBi(PositionScheme):
    """Score minus slope times distance, one slope a head: -m_h |i - j|, m_h = 2^(-8h/N) (arXiv 2108.12409)."""

    def bias(self, q: Tokens, k: Tokens, heads: int, params: Parameters) -> jax.Array:
        return -jnp.asarray(alibi_slopes(heads), jnp.float32)[:, None, None] * away(q, k)


@member("positions", "decay")
@dataclasses.dataclass(frozen=True)
class Decay(PositionScheme):
    """Attention weights shrink by `gamma` a step before they are normalised: adds |i - j| log gamma.

    The decay mask of Wu et al. 2025 (arXiv 2502.01951, Lemma 4.4) with m = -log gamma; the same for every head.
    """

    gamma: float = 0.8

    def __post_init__(self) -> None:
        require(0 < self.gamma <= 1, "gamma", self.gamma, "a number above 0 and at most 1")

    def bias(self, q: Tokens, k: Tokens, heads: int, params: Parameters) -> jax.Array:
        return math.log(self.gamma) * away(q, k)
