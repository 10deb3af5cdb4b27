"""Gated slot attention: a fixed number of slots that tokens write to, and softmax over the slots."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Tree
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import Recurrent, by_head, held, normed, only_valid, product, rotated
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require


@member("operators", "gated_slot")
@dataclasses.dataclass(frozen=True)
class GatedSlot(Recurrent):
    """o_t = softmax(q_t K~_t') V~_t over `slots`, K~_t = diag(a_t) K~_(t-1) + (1 - a_t) k_t', V~ likewise (GSA).

    Zhang et al. 2024 (arXiv 2409.07146; the gated slots, and their form as two passes of GLA): a_t = sigmoid(W x_t)^(1
    / `slowness`), one a slot and head; queries pass a swish, so do keys, values. Two gated recurrences with a softmax
    between. Ours: scores are over sqrt(H), and the output of each head over its root mean square; the authors' layer
    (flash-linear-attention, `GatedSlotAttention`) leaves scores as they are, and takes a swish of the output over the
    root mean square of all heads. ABC (Peng et al. 2022) is the same with a running mean in place of the decay.
    """

    known_as = ("gsa",)

    slots: int = 16
    slowness: float = 8.0

    def __post_init__(self) -> None:
        require(1 <= self.slots <= 65536, "slots", self.slots, "a whole number from 1 to 65536")
        require(0.01 <= self.slowness <= 1e6, "slowness", self.slowness, "a number from 0.01 to 1000000")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {"decay": Matrix((dims.width, dims.heads * self.slots), "gate", dims.width, "fan_in")}

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        return {"log_decay": jax.nn.log_sigmoid(product(stream, params["decay"])) / self.slowness}

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
        q, k = rotated(position, jax.nn.silu(q), jax.nn.silu(k), tokens, tokens)
        q, k, values = (x.astype(jnp.float32) for x in (q, k, jax.nn.silu(v)))
        decay = only_valid(site("log_decay", by_head(params["log_decay"], q.shape[2])), tokens)
        written = -jnp.expm1(decay)  # 1 - a, and 0 for a token that is none
        scores, slots_k = kernels.linear_attention(
            q * q.shape[-1] ** -0.5,
            k,
            written,
            value_log_decay=decay,
            initial_state=held(state, "k"),
            resets=asked.resets(),
        )
        mixed, slots_v = kernels.linear_attention(
            jax.nn.softmax(scores, axis=-1),
            written,
            values,
            log_decay=decay,
            initial_state=held(state, "v"),
            resets=asked.resets(),
        )
        return only_valid(normed(mixed).astype(v.dtype), tokens), {"k": slots_k, "v": slots_v}
