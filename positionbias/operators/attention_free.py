"""The mean of what may be seen: mixing that looks at no content."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.masks.base import Mask
from positionbias.operators.base import Operator, SiteFunction, over_heads
from positionbias.positions.base import Parameters, Placed
from positionbias.spec import member
from positionbias.tokens import Tokens


@member("operators", "attention_free")
@dataclasses.dataclass(frozen=True)
class AttentionFree(Operator):
    """Each output is the mean of the values that the mask lets its token see; queries and keys are not read.

    What softmax attention is when all scores are equal, as at the start of training: a control for what the mask and
    the depth do alone (Wu et al. 2025, arXiv 2502.01951, section 4). A row that sees nothing is 0.
    """

    patterns = frozenset({"noncausal_self", "causal_self", "noncausal_cross", "causal_cross"})
    uses_rotation = False
    uses_bias = False
    has_pattern = True

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
        allowed = over_heads(mask.dense(tokens_q, tokens_k))
        seen = allowed.sum(axis=-1, keepdims=True)  # by numpy where it is known: XLA takes long to fold so large a sum
        share = jnp.asarray(allowed) / jnp.maximum(seen, 1)
        pattern = site("pattern", jnp.broadcast_to(share, (len(q), q.shape[2], *share.shape[-2:])))
        return jnp.einsum("BNTS,BSNK->BTNK", pattern.astype(v.dtype), v)

    def step(
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
        return self(q, k, v, tokens_q, tokens_k, mask, position, params, site)
