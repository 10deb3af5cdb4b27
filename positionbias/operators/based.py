"""Based: linear attention by Taylor's second-order features, exact attention in a window, and a short convolution."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.masks.base import Mask
from positionbias.masks.order import Causal, SlidingWindow
from positionbias.operators.base import SiteFunction
from positionbias.operators.linear_attention import feature_size, features
from positionbias.operators.recurrent import Recurrent, all_convolved, convolution_matrices, only_valid, rotated
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "based")
@dataclasses.dataclass(frozen=True)
class Based(Recurrent):
    """Linear attention with f(q) . f(k) = 1 + s + s^2 / 2 plus softmax attention to the last `window` tokens.

    Arora et al. 2024 (arXiv 2402.18668, sections 3.1 and 3.2): s = q . k / sqrt(`features`) of queries and keys mapped
    to `features` entries a head. The paper has the two attentions and gated convolutions in layers of their own, which
    `[short_convolution(gated=True), based(window=0, convolution=0), ...]` gives; in one layer (ours) their outputs are
    added, and with `convolution` queries, keys and values first pass a causal convolution of so many tokens.
    """

    features: int = 16
    window: int = 16
    convolution: int = 3

    def __post_init__(self) -> None:
        require(1 <= self.features <= 65536, "features", self.features, "a whole number from 1 to 65536")
        require(0 <= self.window <= 65536, "window", self.window, "a whole number from 0 to 65536")
        require(0 <= self.convolution <= 65536, "convolution", self.convolution, "a whole number from 0 to 65536")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        maps = {
            name: Matrix((dims.heads, dims.head_size, self.features), "feature", dims.head_size, "fan_in")
            for name in ("map_q", "map_k")
        }
        return maps | (convolution_matrices(self.convolution, dims) if self.convolution else {})

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
        if self.convolution:
            q, k, v = all_convolved(q, k, v, tokens_k, params)
        q, k = rotated(position, q, k, tokens_q, tokens_k)
        short_q, short_k = (
            features(jnp.einsum("BTNH,NHF->BTNF", x, params[f"map_{name}"].astype(x.dtype)), "taylor")
            for name, x in (("q", q), ("k", k))
        )
        mixed, _ = kernels.linear_attention(
            short_q, only_valid(short_k, tokens_k), v.astype(jnp.float32), normalise=True
        )
        mixed = mixed.astype(v.dtype)
        if self.window:
            near = Causal() & SlidingWindow(self.window)
            mixed = mixed + kernels.attention(q, k, v, mask=near, tokens=(tokens_q, tokens_k))
        return only_valid(mixed, tokens_q)

    def state_size(self, dims: Dims) -> int:
        memory = feature_size(self.features, "taylor") * (dims.values + 1)
        near = min(self.window, dims.length) * (dims.head_size + dims.values)
        return dims.heads * (memory + near + max(self.convolution - 1, 0) * (2 * dims.head_size + dims.values))
