"""LAWCAT: linear attention across convolved tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Tree
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.gated_linear_attention import decay_matrices, log_decay
from positionbias.operators.recurrent import (
    Recurrent,
    by_head,
    convolution_matrix,
    convolved,
    held,
    only_valid,
    rotated,
)
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require


@member("operators", "lawcat")
@dataclasses.dataclass(frozen=True)
class LAWCAT(Recurrent):
    """Gated linear attention, normalised, of queries and keys convolved over `convolution` tokens (Liu et al. 2025).

    arXiv 2509.18467, "Efficient Distillation from Quadratic to Linear Attention with Convolution across Tokens": a
    causal convolution a feature, without nonlinearity, of queries and of keys but not of values; one map f = softmax(W
    x), a head, for both, with `features` entries, positive so that sums may be divided by; S_t = diag(a_t) S_(t-1) +
    f(k_t) v_t', z_t likewise over ones, o_t = f(q_t) S_t / f(q_t) . z_t. The gates' form is not published: a_t is that
    of `gated_linear_attention`, one a feature. The paper distils from a trained model; here all is trained from
    scratch.
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
        made, after = {}, {}
        for name, x in zip("qk", rotated(position, q, k, tokens, tokens), strict=True):
            kernel, before = params[f"convolution_{name}"], held(state, name)
            x, after[name] = convolved(only_valid(x, tokens), kernel, before, asked)
            made[name] = self._features(x, params)
        decay = only_valid(site("log_decay", by_head(params["log_decay"], q.shape[2])), tokens)
        mixed, memory = kernels.linear_attention(
            made["q"],
            only_valid(made["k"], tokens),
            v.astype(jnp.float32),
            log_decay=decay,
            initial_state=held(state, "memory"),
            resets=asked.resets(),
            normalise=True,
        )
        return only_valid(mixed.astype(v.dtype), tokens), {**after, "memory": memory}

    def _features(self, x: jax.Array, params: Parameters) -> jax.Array:
        made = jnp.einsum("BTNH,NHF->BTNF", x.astype(jnp.float32), params["map"].astype(jnp.float32))
        return jax.nn.softmax(made, axis=-1)
