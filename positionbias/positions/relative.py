"""Position schemes that learn a vector for each relative position."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.positions.base import Dims, Matrix, Parameters, PositionScheme
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("positions", "learned_relative")
@dataclasses.dataclass(frozen=True)
class LearnedRelative(PositionScheme):
    """A trained vector a relative position and head, added to keys (Shaw et al. 2018, arXiv 1803.02155).

    The score is q_i . (k_j + a_r), r = i - j clipped to -`farthest`..`farthest`, so that keys that come later have
    vectors of their own; row `farthest` + r of the table holds a_r for all heads. Every layer has its own table. The
    paper adds such vectors to values too; how values are mixed is an operator's matter, and they are left out.
    """

    farthest: int = 16

    def __post_init__(self) -> None:
        require(1 <= self.farthest <= 65536, "farthest", self.farthest, "a whole number from 1 to 65536")

    def layer_parameters(self, dims: Dims) -> dict[str, Matrix]:
        shape = (2 * self.farthest + 1, dims.heads * dims.head_size)
        return {"table": Matrix(shape, "position", dims.head_size)}

    def products(self, q: jax.Array, k: jax.Array, tokens_q: Tokens, tokens_k: Tokens, params: Parameters) -> jax.Array:
        table = params["table"].astype(q.dtype).reshape(-1, *q.shape[-2:])  # [R, N, H]
        found = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
        toward = jnp.einsum("BTNH,RNH->BNTR", q, table, preferred_element_type=jnp.float32)
        away = jnp.asarray(tokens_q.rows().position) - jnp.asarray(tokens_k.columns().position)
        row = jnp.clip(away, -self.farthest, self.farthest) + self.farthest
        row = row.reshape(-1, 1, *row.shape[-2:])  # [B or 1, 1, T, S]
        return found + jnp.take_along_axis(toward, row, axis=-1)
