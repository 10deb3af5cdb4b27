"""Retention: linear attention that forgets at a pace of each head's own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Float, Tree
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import Recurrent, gate_matrix, normed, only_valid, opened, product, rotated
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member


@member("operators", "retention")
@dataclasses.dataclass(frozen=True)
class Retention(Recurrent):
    """o_i = sum over j <= i of g_h^(i - j) q_i . k_j / sqrt(H) v_j, g_h = 1 - 2^(-5 - h), h = 0.. (RetNet).

    Sun et al. 2023 (arXiv 2307.08621, equations 5 and 8): each head's output over its root mean square, and, if
    `gated`, through the swish of a gate made of the stream. i - j counts places in storage; the paper's rotation of
    queries and keys is the position scheme `rope`.
    """

    known_as = ("retnet",)

    gated: bool = True

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {"gate": gate_matrix(dims)} if self.gated else {}

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        return {"open": product(x, params["gate"])} if self.gated else {}

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
        q, k = rotated(position, q, k, asked.tokens_q, asked.tokens_q)
        decay = jnp.broadcast_to(jnp.log(paces(q.shape[2])), q.shape[:3])
        mixed, state = kernels.linear_attention(
            q * q.shape[-1] ** -0.5,
            only_valid(k, asked.tokens_q),
            v,
            log_decay=decay,
            initial_state=state,
            resets=asked.resets(),
        )
        mixed = normed(mixed)
        return only_valid(opened(mixed, params["open"]) if self.gated else mixed, asked.tokens_q), state


def paces(heads: int) -> Float[np.ndarray, "N"]:
    """g_h of each head."""
    return (1.0 - 2.0 ** (-5.0 - np.arange(heads))).astype(np.float32)
