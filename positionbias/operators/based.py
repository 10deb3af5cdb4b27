"""Based: linear attention by Taylor's second-order features, exact attention in a window, and a short convolution."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Tree
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.linear_attention import features
from positionbias.operators.recurrent import (
    Recurrent,
    State,
    all_convolved,
    convolution_matrices,
    held,
    near,
    only_valid,
    rotated,
)
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require


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
        tokens, after = asked.tokens_q, State()
        if self.convolution:
            (q, k, v), after["convolved"] = all_convolved(q, k, v, asked, params, held(state, "convolved"))
        q, k = rotated(position, q, k, tokens, tokens)
        short_q, short_k = (
            features(jnp.einsum("BTNH,NHF->BTNF", x, params[f"map_{name}"].astype(x.dtype)), "taylor")
            for name, x in (("q", q), ("k", k))
        )
        mixed, after["memory"] = kernels.linear_attention(
            short_q,
            only_valid(short_k, tokens),
            v.astype(jnp.float32),
            initial_state=held(state, "memory"),
            resets=asked.resets(),
            normalise=True,
        )
        mixed = mixed.astype(v.dtype)
        if self.window:
            exact, _, after["near"] = near(q, k, v, self.window, asked, held(state, "near"))
            mixed = mixed + exact
        return only_valid(mixed, tokens), after
