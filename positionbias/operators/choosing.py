"""Operators that choose keys by what queries and keys hold: what they share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import ScoreOperator, SiteFunction, over_heads, scores
from positionbias.positions.base import Parameters, Placed
from positionbias.tokens import Tokens


class Choosing(ScoreOperator):
    """A score operator whose pattern is made of queries and keys beside their scores.

    Every score is computed, and then those are used that were chosen: what is reproduced is the function, not its cost.
    """

    def pattern(
        self,
        found: Float[jax.Array, "B N T S"],
        allowed: Bool[jax.Array, "..."],
        q: Float[jax.Array, "B T N H"],
        k: Float[jax.Array, "B S N H"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        position: Placed,
        params: Parameters,
    ) -> Float[jax.Array, "B N T S"]:
        """The weights on values, given the scores `found`; zero where not `allowed`."""
        raise NotImplementedError

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
        found = site("scores", scores(q, k, tokens_q, tokens_k, position, self.scaled))
        allowed = over_heads(mask.dense(tokens_q, tokens_k))
        pattern = site("pattern", self.pattern(found, allowed, q, k, tokens_q, tokens_k, position, params))
        return jnp.einsum("BNTS,BSNK->BTNK", pattern.astype(v.dtype), v)


def all_pairs(tokens_q: Tokens, tokens_k: Tokens, causal: bool) -> Bool[Mapped, "... T S"]:
    """Who sees whom where nothing is hidden but padding and, if `causal`, what is stored behind the query."""
    pairs = tokens_q.rows().valid & tokens_k.columns().valid
    return pairs & np.tri(tokens_q.length, tokens_k.length, dtype=bool) if causal else pairs
