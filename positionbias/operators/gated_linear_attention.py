"""Gated linear attention: every key channel forgets as the token says."""

from __future__ import annotations

import dataclasses

import jax

from positionbias import kernels
from positionbias.arrays import Tree
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import (
    Recurrent,
    by_head,
    gate_matrix,
    normed,
    only_valid,
    opened,
    product,
    rotated,
)
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require


@member("operators", "gated_linear_attention")
@dataclasses.dataclass(frozen=True)
class GatedLinearAttention(Recurrent):
    """S_t = diag(a_t) S_(t-1) + k_t v_t', o_t = q_t S_t / sqrt(H) (GLA, Yang et al. 2023).

    arXiv 2312.06635, equations 3 and 4 and section 4.4: a_t = sigmoid(x_t W_1 W_2 + b)^(1 / `slowness`), through
    `rank` features; each head's output over its root mean square and through the swish of a gate made of the stream.
    """

    known_as = ("gla",)

    rank: int = 16
    slowness: float = 16.0

    def __post_init__(self) -> None:
        require(1 <= self.rank <= 65536, "rank", self.rank, "a whole number from 1 to 65536")
        require(0.01 <= self.slowness <= 1e6, "slowness", self.slowness, "a number from 0.01 to 1000000")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {"gate": gate_matrix(dims), **decay_matrices(dims, self.rank)}

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        return {"open": product(x, params["gate"]), "log_decay": log_decay(stream, params, self.slowness)}

    def advance(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        asked: Asked,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
        state: Tree,
    ) -> tuple[jax.Array, Tree]:
        tokens = asked.tokens_q
        q, k = rotated(position, q, k, tokens, tokens)
        decay = only_valid(site("log_decay", by_head(params["log_decay"], q.shape[2])), tokens)
        mixed, state = kernels.linear_attention(
            q * q.shape[-1] ** -0.5,
            only_valid(k, tokens),
            v,
            log_decay=decay,
            initial_state=state,
            resets=asked.resets(),
        )
        return only_valid(opened(normed(mixed), params["open"]), tokens), state


def decay_matrices(dims: Dims, rank: int) -> dict[str, Matrix]:
    """What `log_decay` reads: one decay a key channel, through `rank` features."""
    size = dims.heads * dims.head_size
    return {
        "decay_in": Matrix((dims.width, rank), "gate", dims.width, "fan_in"),
        "decay_out": Matrix((rank, size), "gate", rank, "fan_in"),
        "decay_offset": Matrix((size,), "gate", rank, "constant(value=0.0)"),
    }


def log_decay(stream: jax.Array, params: Parameters, slowness: float) -> jax.Array:
    """log sigmoid(x W_1 W_2 + b) / `slowness`, [B, T, N H] float32."""
    made = product(product(stream, params["decay_in"]), params["decay_out"]) + params["decay_offset"]
    return jax.nn.log_sigmoid(made) / slowness
