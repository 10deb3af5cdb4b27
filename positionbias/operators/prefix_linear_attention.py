"""Prefix linear attention: a context that every token reads whole, and linear attention from there on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Int, Mapped, Tree, rows_times
from positionbias.masks.base import Mask
from positionbias.masks.order import Causal
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.linear_attention import Feature, of_another, of_its_own, summed
from positionbias.operators.recurrent import Recurrent, by_head, of_one_sequence, only_valid, rotated, there
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member
from positionbias.tokens import Tokens


@member("operators", "prefix_linear_attention")
@dataclasses.dataclass(frozen=True)
class PrefixLinearAttention(Recurrent):
    """Linear attention on all tokens up to a query's own and, by keys and values of their own, on the whole context.

    JRT-RNN (Arora et al. 2024, arXiv 2407.05483, section 4): with a feature map f as in `linear_attention`, and of
    tokens of the context keys k' and values v' by matrices of their own, o_t is the sum over j <= t of f(q_t) . f(k_j)
    v_j and over the context of f(q_t) . f(k'_j) v'_j, divided by both sums of weights. A token of the context sees the
    rest of it too, so that the mask has to be `context_bidirectional` or wider, and a loss on inputs of the context
    would read them. Without a context it is `linear_attention`. Across sequences both sums are over that of the keys,
    which is the context whole where an encoder reads it.
    """

    known_as = ("jrt", "jrt_rnn", "pla")

    feature: Feature = "taylor"

    reads_tokens = frozenset({"context"})
    patterns = frozenset({"causal_self", "noncausal_self", "causal_cross", "noncausal_cross"})
    endless = "the context is one, and every token reads it whole"

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {
            "context_key": Matrix((dims.read, dims.heads * dims.head_size), "key", dims.read),
            "context_value": Matrix((dims.read, dims.heads * dims.values), "value", dims.read),
        }

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        names = {"keys_of_context": "context_key", "values_of_context": "context_value"}
        return {name: rows_times(stream, params[matrix]) for name, matrix in names.items()}

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
        state = self._of_context(tokens_k, position, params, k.shape[2])
        q, k = rotated(position, q, k, tokens_q, tokens_k)
        mixed = of_another(q, k, v, tokens_q, tokens_k, Causal(), self.feature, self._divides, state)
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
        tokens = asked.tokens_q
        if state is None:  # the first rows hold the whole context
            state = self._of_context(tokens, position, params, q.shape[2])
        q, k = rotated(position, q, k, tokens, tokens)
        mixed, state = of_its_own(q, k, v, asked._replace(mask=Causal()), self.feature, self._divides, state)
        return only_valid(mixed.astype(v.dtype), tokens), state

    @property
    def _divides(self) -> bool:
        return self.feature != "identity"

    def _of_context(self, tokens: Tokens, position: Placed, params: Parameters, heads: int) -> jax.Array:
        """The state that the context's own keys and values make."""
        theirs = position.rotate(by_head(params["keys_of_context"], heads), tokens, "key")
        inside = tokens._replace(valid=jnp.asarray(tokens.valid) & (jnp.asarray(tokens.context) > 0))
        values = by_head(params["values_of_context"], heads)
        return summed(theirs, values, there(inside, len(theirs)), self.feature, self._divides)

    @property
    def _sees_all(self) -> bool:
        return False  # of what is behind a query it sees the context, under any mask

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        rows, columns = tokens_q.rows(), tokens_k.columns()
        return rows.valid & columns.valid & ((columns.index <= rows.index) | (columns.context > 0))

    def goes_beyond(self, allowed: Bool[np.ndarray, "T S"], beyond: Int[np.ndarray, "P 2"]) -> str:
        if (beyond[:, 1] < beyond[:, 0]).any():
            return super().goes_beyond(allowed, beyond)
        return "every token reads the whole context, as context_bidirectional lets it"
