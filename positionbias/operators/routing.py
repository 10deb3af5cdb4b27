"""Attention to whole regions, chosen by their means."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import Operator, Pattern
from positionbias.operators.choosing import Choosing, all_pairs, in_blocks, out_of_blocks
from positionbias.operators.recurrent import there
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
    region before it chooses. Across sequences, which the form of `causal=False` works as, queries and keys have regions
    of their own sequence. Means are of queries and keys before rotation, of tokens that are no padding. Scores are over
    sqrt(H), where released code has the features of all heads. Left out are the convolution on values, and routing
    weights that multiply keys and values.

    As means are of whole regions, masks may hide nothing but padding and, in the causal form, what is stored later.

    Chosen regions are gathered, T `top` `region` pairs, beside the (T / `region`)^2 of means: T^(4/3) where `region` is
    made to grow as T^(1/3), T^2 where it is left as it is. Of few tokens, where a site reads scores or the pattern, and
    with schemes that add to scores, every score is computed.
    """

    known_as = ("biformer", "bra")

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
        return frozenset({"causal_self"}) if self.causal else frozenset({"noncausal_self", "noncausal_cross"})

    @property
    def mixes_queries(self) -> bool:  # type: ignore[override]
        return not self.causal

    def lacking(self, pattern: Pattern) -> str:
        if pattern == "causal_cross":
            return "regions are chosen by means of queries, which tell of later ones too"
        return f"it is its {'' if self.causal else 'non'}causal form, and causal={not self.causal} the other"

    def pattern(
        self,
        found: jax.Array,
        allowed: Mapped,
        q: jax.Array,
        k: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        position: Placed,
        params: Parameters,
    ) -> jax.Array:
        best, good = self.routed(q, k, tokens_q, tokens_k)
        of_q, of_k = (np.arange(tokens.length) // self.region for tokens in (tokens_q, tokens_k))
        routed = jnp.any((best[..., None] == np.arange(of_k[-1] + 1)) & good[..., None], axis=2)[:, of_q][:, :, of_k]
        pairs = jnp.asarray(all_pairs(tokens_q, tokens_k, self.causal))
        pairs = pairs if pairs.ndim == 3 else pairs[None]
        return masked_softmax(found, allowed & (pairs & routed)[:, None])

    def gathered(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
    ) -> jax.Array:
        best, good = self.routed(q, k, tokens_q, tokens_k)
        awake, valid = (in_blocks(there(tokens, len(q)), self.region) for tokens in (tokens_q, tokens_k))
        q, k = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        rows = in_blocks(q, self.region)  # [B, R, L, N, H]
        take = jax.vmap(lambda x, at: x[at])
        keys, values = (take(in_blocks(x, self.region), best) for x in (k, v))  # [B, R, C, M, N, H]
        found = jnp.einsum("BRLNH,BRCMNH->BNRLCM", rows, keys, preferred_element_type=jnp.float32)
        found = found * (q.shape[-1] ** -0.5 if self.scaled else 1.0)
        seen = (take(valid, best) & good[..., None])[:, :, None] & awake[..., None, None]  # [B, R, L, C, M]
        if self.causal:
            places = np.arange(rows.shape[2])
            own = best[..., None] * self.region + places
            rows_at = np.arange(best.shape[1])[:, None] * self.region + places
            seen = seen & (own[:, :, None] <= rows_at[..., None, None])
        flat = found.reshape(*found.shape[:4], -1), seen.reshape(*seen.shape[:3], -1)[:, None]
        weights = masked_softmax(*flat).reshape(found.shape).astype(v.dtype)
        return out_of_blocks(jnp.einsum("BNRLCM,BRCMNK->BRLNK", weights, values), q.shape[1])

    def routed(
        self, q: Float[jax.Array, "B T N H"], k: Float[jax.Array, "B S N H"], tokens_q: Tokens, tokens_k: Tokens
    ) -> tuple[Int[jax.Array, "B R C"], Bool[jax.Array, "B R C"]]:
        """Which of U regions of keys the queries of each of R see, no two the same, and which of these there are."""
        (mean_q, _), (mean_k, counts) = (self._means(*one) for one in ((q, tokens_q), (k, tokens_k)))
        regions = counts.shape[1]
        if self.causal:
            mean_q = jnp.pad(mean_q, [(0, 0), (1, 0), (0, 0)])[:, :-1]
        suits = jax.lax.stop_gradient(jnp.einsum("BRF,BUF->BRU", mean_q, mean_k) * mean_q.shape[-1] ** -0.5)
        open_to = (counts[:, None] > 0) & (np.tri(regions, k=-1, dtype=bool) if self.causal else True)
        open_to = jnp.broadcast_to(open_to, suits.shape)
        _, best = jax.lax.top_k(jnp.where(open_to, suits, -jnp.inf), min(self.top - self.causal, regions))
        good = jnp.take_along_axis(open_to, best, axis=-1)
        if not self.causal:
            return best, good
        own = jnp.broadcast_to(np.arange(regions)[:, None], (*best.shape[:2], 1))
        return jnp.concatenate([own, best], axis=-1), jnp.concatenate([own >= 0, good], axis=-1)

    def _means(
        self, x: Float[jax.Array, "B T N H"], tokens: Tokens
    ) -> tuple[Float[jax.Array, "B R F"], Int[jax.Array, "B R"]]:
        """Of each region, over all heads side by side in float32, and of how many tokens that are no padding."""
        valid, flat = there(tokens, len(x)), x.reshape(*x.shape[:2], -1).astype(jnp.float32)
        counts = jnp.sum(in_blocks(valid, self.region), axis=2)
        total = jnp.sum(in_blocks(jnp.where(valid[..., None], flat, 0.0), self.region), axis=2)
        return total / jnp.maximum(counts, 1)[..., None], counts

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        pairs = all_pairs(tokens_q, tokens_k, self.causal)
        if not (self.causal and self.top == 1):
            return pairs
        of = np.arange(tokens_q.length) // self.region
        return pairs & (of[:, None] == of)

    def state_size(self, dims: Dims) -> int:
        kept = dims.length * (dims.head_size + dims.values) + 2 * dims.head_size  # two regions' mean queries as well
        return dims.heads * kept
