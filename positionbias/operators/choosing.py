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

LONG = 256  # tokens from which keys are gathered: from there on that is the quicker, on a CPU too


def over_all_pairs(length: int, position: Placed, site: SiteFunction) -> bool:
    """Whether the formula is computed, with every score: of few tokens, and where something is made of every pair.

    That is where a site reads scores or pattern, or where the position scheme adds to scores or has its own products.
    """
    read = [site.wanted(name) for name in ("scores", "pattern")]
    return any(read) or length < LONG or position.biases or position.multiplies


class Choosing(ScoreOperator):
    """A score operator whose pattern is made of queries and keys beside their scores.

    Where `over_all_pairs` says so every score is computed, and then those are used that were chosen; else `gathered`
    computes those alone.
    """

    family = "sparse attention"

    def pattern(
        self,
        found: Float[jax.Array, "B N T S"],
        allowed: Bool[Mapped, "..."],
        q: Float[jax.Array, "B T N H"],
        k: Float[jax.Array, "B S N H"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        position: Placed,
        params: Parameters,
    ) -> Float[jax.Array, "B N T S"]:
        """The weights on values, given the scores `found`; zero where not `allowed`."""
        raise NotImplementedError

    def gathered(
        self,
        q: Float[jax.Array, "B T N H"],
        k: Float[jax.Array, "B S N H"],
        v: Float[jax.Array, "B S N K"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
    ) -> Float[jax.Array, "B T N K"]:
        """The call by chosen keys alone, without what a scheme adds to scores."""
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
        if not over_all_pairs(tokens_q.length, position, site):
            return self.gathered(q, k, v, tokens_q, tokens_k, mask, position, params)
        found = site("scores", scores(q, k, tokens_q, tokens_k, position, self.scaled))
        allowed = over_heads(mask.dense(tokens_q, tokens_k))
        pattern = site("pattern", self.pattern(found, allowed, q, k, tokens_q, tokens_k, position, params))
        return jnp.einsum("BNTS,BSNK->BTNK", pattern.astype(v.dtype), v)


def all_pairs(tokens_q: Tokens, tokens_k: Tokens, causal: bool) -> Bool[Mapped, "... T S"]:
    """Who sees whom where nothing is hidden but padding and, if `causal`, what is stored behind the query."""
    pairs = tokens_q.rows().valid & tokens_k.columns().valid
    return pairs & np.tri(tokens_q.length, tokens_k.length, dtype=bool) if causal else pairs


def in_blocks(x: Float[jax.Array, "B T ..."], size: int) -> Float[jax.Array, "B U L ..."]:
    """By blocks of tokens, the last filled up with zeros; of fewer tokens than `size`, one block of them all."""
    size = min(size, x.shape[1])
    filled = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
    return filled.reshape(len(x), -1, size, *x.shape[2:])


def out_of_blocks(x: Float[jax.Array, "B U L ..."], length: int) -> Float[jax.Array, "B T ..."]:
    """The first `length` tokens of blocks."""
    return x.reshape(len(x), -1, *x.shape[3:])[:, :length]
