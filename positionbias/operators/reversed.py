"""Attention whose senders share themselves out."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Mapped
from positionbias.kernels.softmax_attention.problem import NOTHING_SEEN
from positionbias.masks.base import Mask
from positionbias.masks.order import Bidirectional
from positionbias.operators.base import Operator, ScoreOperator, SiteFunction, reasons
from positionbias.operators.choosing import all_pairs, over_all_pairs
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member
from positionbias.tokens import Tokens


@member("operators", "reversed")
@dataclasses.dataclass(frozen=True)
class Reversed(ScoreOperator):
    """Reversed attention: token j sends its value to all, in shares that sum to 1 over those who receive it.

    DependencyViT (Ding et al. 2023, arXiv 2304.03282): the transpose of F = softmax(Q K'), whose rows are senders. Here
    the receiver's vector is the query and the sender's the key, the other way round, which trained matrices cannot tell
    apart: weights are the softmax of scores over queries. `selector` has each sender choose among heads by softmax(x W
    / 0.1), and `gate` how much it sends at all by sigmoid(x w + b), ours for an MLP. Both are of one layer: gates that
    multiply along the layers, gated final features, and pruning of tokens are left out. Across sequences the tokens of
    one send to those of the other, T x S shares of which each of the S columns sums to 1; senders choose and are gated
    by their own stream. A share tells of all who receive, so that masks may hide nothing but padding, and there is no
    causal form.

    Products grow as T^2, as published. Of many tokens it is two calls of the attention kernel, and memory grows as T:
    one for the logarithm of what each sender's weights sum to, and one with that taken off its scores and no softmax.
    """

    selector: bool = False
    gate: bool = False
    scaled: bool = True

    patterns = frozenset({"noncausal_self", "noncausal_cross"})
    lacks = reasons(
        causal_self="a share tells of all who receive, later ones too",
        causal_cross="a share tells of all who receive, those before a key too",
    )
    any_mask = False
    mixes_queries = True
    step = Operator.step  # shares are over all rows
    whole = "a share tells of all who receive, so that every row changes with each that comes"

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        made = {}
        if self.selector:
            made["heads"] = Matrix((dims.read, dims.heads), "selector", dims.read, "fan_in(scale=1.0)")
        if self.gate:
            made["direction"] = Matrix((dims.read, 1), "gate", dims.read, "fan_in(scale=1.0)")
            made["offset"] = Matrix((1,), "gate", 1, "constant(value=0.0)")
        return made

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        senders, made = stream.astype(jnp.float32), {}
        if self.selector:
            made["selected"] = jax.nn.softmax(senders @ params["heads"] / 0.1, axis=-1)  # [B, S, N]
        if self.gate:
            made["sent"] = jax.nn.sigmoid(senders @ params["direction"] + params["offset"])  # [B, S, 1]
        return made

    def fused(
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
    ) -> jax.Array | None:
        if over_all_pairs(q.shape[1], position, site):
            return None
        q, k = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        every, scale = Bidirectional(), None if self.scaled else 1.0
        sides = tokens_k, tokens_q
        _, sums = kernels.attention(k, q, q[..., :1], mask=every, tokens=sides, scale=scale, stats=("lse",))
        for name in ("selected", "sent"):
            if name in params:
                v = v * params[name][..., None].astype(v.dtype)
        assert sums.lse is not None
        less = jnp.where(sums.lse > NOTHING_SEEN, -sums.lse, 0.0)  # nobody hears what padding sends
        sides = tokens_q, tokens_k
        return kernels.attention(q, k, v, mask=every, tokens=sides, scale=scale, key_bias=less, normalise=False)

    def told_weights(
        self,
        scores: jax.Array,
        allowed: Mapped,
        q: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        shares = jnp.swapaxes(masked_softmax(*(jnp.swapaxes(x, -1, -2) for x in (scores, allowed))), -1, -2)
        for name in ("selected", "sent"):
            if name in params:
                shares = shares * jnp.swapaxes(params[name], 1, 2)[:, :, None]
        return shares

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        return all_pairs(tokens_q, tokens_k, causal=False)
