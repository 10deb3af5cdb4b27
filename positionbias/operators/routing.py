"""Attention to whole regions, chosen by their means."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Mapped
from positionbias.operators.base import Operator, Pattern
from positionbias.operators.choosing import Choosing, all_pairs
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "routing")
@dataclasses.dataclass(frozen=True)
class Routing(Choosing):
    """Bi-level routing attention: softmax over the `top` regions whose mean key suits the region's mean query best.

    BiFormer (Zhu et al. 2023, arXiv 2303.08810) in one dimension, with regions of `region` tokens counted from the
    first stored: means are of all heads side by side, choices are the same for all heads and have no gradient. It is
    `causal=False`. The causal form is ours, as a region's mean query tells of tokens to come: a query always sees its
    own region up to itself, which counts as one of the `top`, and of the earlier ones those that the mean query of the
    region before it chooses. Means are of queries and keys before rotation, of tokens that are no padding. Scores are
    over sqrt(H), where released code has the features of all heads. Left out are the convolution on values, and routing
    weights that multiply keys and values.

    As means are of whole regions, masks may hide nothing but padding and, in the causal form, what is stored later.
    """

    region: int = 8
    top: int = 4
    causal: bool = True
    scaled: bool = True

    any_mask = False
    step = Operator.step  # the mean query of a region is not kept
    whole = "regions are chosen by the mean queries of other rows, which are not kept"

    def __post_init__(self) -> None:
        for name in ("region", "top"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number from 1")

    @property
    def patterns(self) -> frozenset[Pattern]:  # type: ignore[override]
        return frozenset({"causal_self"}) if self.causal else frozenset({"noncausal_self"})

    def lacking(self, pattern: Pattern) -> str:
        if pattern.endswith("cross"):
            return "a region is of the mean of its queries, so that rows of a decoder would tell of one another"
        return f"it is its {'' if self.causal else 'non'}causal form, and causal={not self.causal} the other"

    def pattern(
        self,
        found: jax.Array,
        allowed: jax.Array,
        q: jax.Array,
        k: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        position: Placed,
        params: Parameters,
    ) -> jax.Array:
        of = np.arange(tokens_q.length) // self.region
        routed = self.routed(q, k, jnp.asarray(tokens_k.valid))[:, of][:, :, of]
        pairs = jnp.asarray(all_pairs(tokens_q, tokens_k, self.causal))
        pairs = pairs if pairs.ndim == 3 else pairs[None]
        return masked_softmax(found, allowed & (pairs & routed)[:, None])

    def routed(
        self, q: Float[jax.Array, "B T N H"], k: Float[jax.Array, "B T N H"], valid: Bool[jax.Array, "... T"]
    ) -> Bool[jax.Array, "B R R"]:
        """Which regions (last axis) each region's queries see."""
        counts = jnp.sum(self._regions(jnp.broadcast_to(valid, q.shape[:2])[..., None]), axis=2)  # [B, R, 1]
        mean_q, mean_k = (
            jnp.sum(self._regions(jnp.where(valid[..., None], _flat(x), 0.0)), axis=2) / jnp.maximum(counts, 1)
            for x in (q, k)
        )
        regions = counts.shape[1]
        if self.causal:
            mean_q = jnp.pad(mean_q, [(0, 0), (1, 0), (0, 0)])[:, :-1]
        suits = jax.lax.stop_gradient(jnp.einsum("BRF,BUF->BRU", mean_q, mean_k) * mean_q.shape[-1] ** -0.5)
        open_to = (counts[:, None, :, 0] > 0) & (np.tri(regions, k=-1, dtype=bool) if self.causal else True)
        own = np.eye(regions, dtype=bool) & self.causal
        count = min(self.top - self.causal, regions)
        if count == 0:
            return jnp.broadcast_to(own, suits.shape)
        _, best = jax.lax.top_k(jnp.where(open_to, suits, -jnp.inf), count)
        return (jnp.any(best[..., None] == np.arange(regions), axis=-2) & open_to) | own

    def _regions(self, x: Float[jax.Array, "B T F"]) -> Float[jax.Array, "B R L F"]:
        """By regions, the last filled up with zeros."""
        filled = jnp.pad(x, [(0, 0), (0, -x.shape[1] % self.region), (0, 0)])
        return filled.reshape(len(x), -1, self.region, x.shape[-1])

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        pairs = all_pairs(tokens_q, tokens_k, self.causal)
        if not (self.causal and self.top == 1):
            return pairs
        of = np.arange(tokens_q.length) // self.region
        return pairs & (of[:, None] == of)

    def state_size(self, dims: Dims) -> int:
        return (2 * dims.length + 2) * dims.heads * dims.head_size  # two regions' mean queries, beside keys and values


def _flat(x: jax.Array) -> jax.Array:
    """All heads side by side, in float32."""
    return x.reshape(*x.shape[:2], -1).astype(jnp.float32)
