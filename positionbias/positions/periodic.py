"""Position schemes that repeat themselves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.positions.additive import sinusoids
from positionbias.positions.base import Dims, Parameters, PositionScheme, needs_even
from positionbias.positions.distance import alibi_slopes, away
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("positions", "periodic")
@dataclasses.dataclass(frozen=True)
class Periodic(PositionScheme):
    """Sinusoids of t mod `period` in the embeddings, and a penalty for every whole period of distance.

    FaceFormer (Fan et al. 2022, arXiv 2112.05329, section 3.3): the code of `sinusoidal` at t mod p, base 10000, and
    -m_h floor(|i - j| / p) added to scores with the slopes m_h of ALiBi. The paper has causal attention only; that keys
    which come later count by their distance too is ours. Without `stepped_bias` positions a period apart cannot be
    told from each other.
    """

    period: int = 25
    stepped_bias: bool = True

    def __post_init__(self) -> None:
        require(1 <= self.period <= 65536, "period", self.period, "a whole number from 1 to 65536")

    @property
    def biases(self) -> bool:
        return self.stepped_bias

    def check(self, dims: Dims) -> None:
        needs_even("periodic", dims.width, "model.width")

    def embed(self, x: jax.Array, tokens: Tokens, params: Parameters) -> jax.Array:
        return x + sinusoids(jnp.asarray(tokens.position) % self.period, x.shape[-1], 10000.0).astype(x.dtype)

    def bias(self, q: Tokens, k: Tokens, heads: int, params: Parameters) -> jax.Array | None:
        if not self.stepped_bias:
            return None
        periods = jnp.floor(away(q, k) / self.period)
        return -jnp.asarray(alibi_slopes(heads), jnp.float32)[:, None, None] * periods
