"""Based: linear attention by Taylor's second-order features, exact attention in a window, and a short convolution."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Float, Tree
from positionbias.masks.base import Mask
from positionbias.operators.asked import Asked
from positionbias.operators.base import Pattern, SiteFunction
from positionbias.operators.linear_attention import of_another, of_its_own
from positionbias.operators.recurrent import (
    Recurrent,
    State,
    all_convolved,
    convolution_matrices,
    held,
    near,
    of_one_sequence,
    only_valid,
    rotated,
)
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
    added, and with `convolution` queries, keys and values first pass a causal convolution of so many tokens. Window and
    convolution look back from a place in one sequence; without both it is linear attention, to all keys or those of
    another sequence too.
    """

    features: int = 16
    window: int = 16
    convolution: int = 3

    def __post_init__(self) -> None:
        require(1 <= self.features <= 1024, "features", self.features, "a whole number from 1 to 1024")
        require(0 <= self.window <= 65536, "window", self.window, "a whole number from 0 to 65536")
        require(0 <= self.convolution <= 65536, "convolution", self.convolution, "a whole number from 0 to 65536")

    @property
    def patterns(self) -> frozenset[Pattern]:  # type: ignore[override]
        if self.window or self.convolution:
            return frozenset({"causal_self"})
        return frozenset({"causal_self", "noncausal_self", "causal_cross", "noncausal_cross"})

    def lacking(self, pattern: Pattern) -> str:
        return "its window and its convolution, unless both are 0, look back from a place in one sequence"

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
        if of_one_sequence(tokens_q, tokens_k):
            return super().__call__(q, k, v, tokens_q, tokens_k, mask, position, params, site)
        q, k = self._mapped(*rotated(position, q, k, tokens_q, tokens_k), params)
        mixed = of_another(q, k, v, tokens_q, tokens_k, mask, "taylor", normalise=True)
        return only_valid(mixed.astype(v.dtype), tokens_q)

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
        short_q, short_k = self._mapped(q, k, params)
        mixed, after["memory"] = of_its_own(short_q, short_k, v, asked, "taylor", True, held(state, "memory"))
        mixed = mixed.astype(v.dtype)
        if self.window:
            exact, _, after["near"] = near(q, k, v, self.window, asked, held(state, "near"))
            mixed = mixed + exact
        return only_valid(mixed, tokens), after

    def _mapped(
        self, q: jax.Array, k: jax.Array, params: Parameters
    ) -> tuple[Float[jax.Array, "B T N F"], Float[jax.Array, "B S N F"]]:
        """Queries and keys of few entries."""
        maps = params["map_q"], params["map_k"]
        q, k = (jnp.einsum("BTNH,NHF->BTNF", x, matrix.astype(x.dtype)) for x, matrix in zip((q, k), maps, strict=True))
        return q, k
