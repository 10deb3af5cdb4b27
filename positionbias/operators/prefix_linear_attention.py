"""Prefix linear attention: a context that every token reads whole, and linear attention from there on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Bool, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import SiteFunction
from positionbias.operators.linear_attention import Feature, feature_size, features
from positionbias.operators.recurrent import Recurrent, by_head, only_valid, rotated
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
    would read them. Without a context it is `linear_attention`.
    """

    feature: Feature = "taylor"

    reads_tokens = frozenset({"context"})
    patterns = frozenset({"causal_self", "noncausal_self"})

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {
            "context_key": Matrix((dims.width, dims.heads * dims.head_size), "key", dims.width),
            "context_value": Matrix((dims.width, dims.heads * dims.values), "value", dims.width),
        }

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        names = {"keys_of_context": "context_key", "values_of_context": "context_value"}
        return {name: stream @ params[matrix].astype(stream.dtype) for name, matrix in names.items()}

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
        heads = q.shape[2]
        theirs = position.rotate(by_head(params["keys_of_context"], heads), tokens_k, "key")
        q, k = rotated(position, q, k, tokens_q, tokens_k)
        q, k, theirs = (features(x, self.feature) for x in (q, k, theirs))
        inside = tokens_k._replace(valid=jnp.asarray(tokens_k.valid) & (jnp.asarray(tokens_k.context) > 0))
        theirs, values = only_valid(theirs, inside), by_head(params["values_of_context"], heads).astype(jnp.float32)
        divides = self.feature != "identity"
        if divides:
            values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
        state = jnp.einsum("BSNF,BSNK->BNFK", theirs, values)
        mixed, _ = kernels.linear_attention(
            q, only_valid(k, tokens_k), v.astype(jnp.float32), initial_state=state, normalise=divides
        )
        return only_valid(mixed.astype(v.dtype), tokens_q)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        rows, columns = tokens_q.rows(), tokens_k.columns()
        return rows.valid & columns.valid & ((columns.index <= rows.index) | (columns.context > 0))

    def state_size(self, dims: Dims) -> int:
        return dims.heads * feature_size(dims.head_size, self.feature) * (dims.values + (self.feature != "identity"))
