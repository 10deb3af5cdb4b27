"""LAWCAT: linear attention across convolved tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.masks.base import Mask
from positionbias.operators.base import SiteFunction
from positionbias.operators.gated_linear_attention import decay_matrices, log_decay
from positionbias.operators.recurrent import Recurrent, by_head, convolution_matrix, convolved, only_valid, rotated
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "lawcat")
@dataclasses.dataclass(frozen=True)
class LAWCAT(Recurrent):
    """Gated linear attention, normalised, of queries and keys convolved over `convolution` tokens (Liu et al. 2025).

    "Efficient Distillation from Quadratic to Linear Attention with Convolution across Tokens": a causal convolution a
    feature, without nonlinearity, of queries and of keys but not of values; one map f = softmax(W x), a head, for both,
    with `features` entries, positive so that sums may be divided by; S_t = diag(a_t) S_(t-1) + f(k_t) v_t', z_t
    likewise over ones, o_t = f(q_t) S_t / f(q_t) . z_t. The gates' form is not published: a_t is that of
    `gated_linear_attention`, one a feature. The paper distils from a trained model; here all is trained from scratch.
    """

    features: int = 32
    convolution: int = 4
    rank: int = 16
    slowness: float = 16.0

    def __post_init__(self) -> None:
        for name in ("features", "convolution", "rank"):
            require(1 <= getattr(self, name) <= 65536, name, getattr(self, name), "a whole number from 1 to 65536")
        require(0.01 <= self.slowness <= 1e6, "slowness", self.slowness, "a number from 0.01 to 1000000")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        size = dims.heads * dims.head_size
        made = dataclasses.replace(dims, head_size=self.features)
        return {
            "convolution_q": convolution_matrix(self.convolution, size),
            "convolution_k": convolution_matrix(self.convolution, size),
            "map": Matrix((dims.heads, dims.head_size, self.features), "feature", dims.head_size, "fan_in"),
            **decay_matrices(made, self.rank),
        }

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        return {"log_decay": log_decay(stream, params, self.slowness)}

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        q, k = rotated(position, q, k, tokens_q, tokens_k)
        q, k = (
            self._features(convolved(only_valid(x, tokens_k), params[f"convolution_{name}"]), params)
            for name, x in (("q", q), ("k", k))
        )
        decay = only_valid(site("log_decay", by_head(params["log_decay"], q.shape[2])), tokens_k)
        mixed, _ = kernels.linear_attention(
            q, only_valid(k, tokens_k), v.astype(jnp.float32), log_decay=decay, normalise=True
        )
        return only_valid(mixed.astype(v.dtype), tokens_q)

    def _features(self, x: jax.Array, params: Parameters) -> jax.Array:
        made = jnp.einsum("BTNH,NHF->BTNF", x.astype(jnp.float32), params["map"].astype(jnp.float32))
        return jax.nn.softmax(made, axis=-1)

    def state_size(self, dims: Dims) -> int:
        return dims.heads * (self.features * (dims.values + 1) + 2 * (self.convolution - 1) * dims.head_size)
