"""Attention to keys of like hash, with a sample of the others."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int, Mapped
from positionbias.masks.base import Mask
from positionbias.masks.order import Bidirectional, Causal
from positionbias.operators.base import Operator, Pattern, SiteFunction, over_heads, scores
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "hyper_attention")
@dataclasses.dataclass(frozen=True)
class HyperAttention(Operator):
    """HyperAttention (Han et al. 2023, arXiv 2310.05869) as a formula: softmax with weights m_ij exp(s_ij).

    Queries and keys, rotated, are hashed by the signs of `projections` random directions, in the order of the Gray
    code, and sorted; cut into blocks of `block` keys, m_ij = 1 within a block. Of n keys `samples` are drawn for each
    head, with replacement, and stand for those of other blocks: m_ij = n / samples times how often j was drawn. That
    is the merge by log-sum-exp of the published code with the overlap masked. Up to `exact` tokens, and with one block,
    it is softmax. The causal form halves the sequence, again and again down to `exact`, and treats the later half's
    look at the earlier one so.

    What is ours: queries that look back are not sorted among themselves, which would tell a row of later ones; each
    goes to the block where its hash belongs among the sorted keys. Directions and samples come from `seed`, the same in
    every step and sequence, where published code draws them anew. All T x S scores are computed: it is here for what
    it computes, not for speed. Masks that hide more than order does are refused.
    """

    causal: bool = True
    block: int = 32
    samples: int = 32
    exact: int = 64
    projections: int = 7
    seed: int = 0
    scaled: bool = True

    any_mask = False
    has_pattern = True
    whole = "every key that comes moves the blocks that keys are sorted into"

    def __post_init__(self) -> None:
        for name, low in (("block", 1), ("samples", 0), ("exact", 1), ("projections", 1), ("seed", 0)):
            require(getattr(self, name) >= low, name, getattr(self, name), f"a whole number from {low}")
        require(self.projections <= 30, "projections", self.projections, "at most 30")

    @property
    def patterns(self) -> frozenset[Pattern]:  # type: ignore[override]
        return frozenset({"causal_self" if self.causal else "noncausal_self"})

    def lacking(self, pattern: Pattern) -> str:
        if pattern.endswith("cross"):
            return "queries are sorted among themselves, so that rows of a decoder would tell of one another"
        return f"it is its {'' if self.causal else 'non'}causal form, and causal={not self.causal} the other"

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
        hashes = self._hash(position.rotate(q, tokens_q, "query")), self._hash(position.rotate(k, tokens_k, "key"))
        last = 2**self.projections  # where padding is sorted to
        bins_q, bins_k = (jnp.where(jnp.asarray(tokens_k.valid)[..., None, :], x, last) for x in hashes)
        times = self._halved(bins_q, bins_k, 0) if self.causal else self._times(bins_q, bins_k, 0)
        allowed = over_heads(mask.dense(tokens_q, tokens_k)) & (times > 0)
        pattern = site("pattern", masked_softmax(found + jnp.log(jnp.where(times > 0, times, 1.0)), allowed))
        return jnp.einsum("BNTS,BSNK->BTNK", pattern.astype(v.dtype), v)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        every = Bidirectional().dense(tokens_q, tokens_k)
        if not self.causal:
            return every
        stored = np.tril(np.ones((tokens_q.length, tokens_k.length), bool))
        return Causal().dense(tokens_q, tokens_k) | (every & stored)

    def _hash(self, x: Float[jax.Array, "B T N H"]) -> Int[jax.Array, "B N T"]:
        """The place in the Gray code of the signs on random directions: neighbours differ in one sign."""
        directions = jax.random.normal(jax.random.key(self.seed), (x.shape[-1], self.projections))
        signs = (jnp.einsum("BTNH,HP->BNTP", jax.lax.stop_gradient(x).astype(jnp.float32), directions) > 0).astype(int)
        return (jnp.cumsum(signs, axis=-1) % 2) @ (2 ** np.arange(self.projections)[::-1])

    def _halved(
        self, q: Int[jax.Array, "B N T"], k: Int[jax.Array, "B N T"], start: int
    ) -> Float[jax.Array, "B N T T"]:
        """m_ij of a sequence with itself: the later half looks back at the earlier, and both go on by themselves."""
        length = q.shape[-1]
        if length <= self.exact:
            return jnp.ones((*q.shape, length))
        middle = length // 2
        early = self._halved(q[..., :middle], k[..., :middle], start)
        late = self._halved(q[..., middle:], k[..., middle:], start + middle)
        back = self._times(q[..., middle:], k[..., :middle], start)
        upper = jnp.concatenate([early, jnp.zeros((*q.shape[:-1], middle, length - middle))], axis=-1)
        return jnp.concatenate([upper, jnp.concatenate([back, late], axis=-1)], axis=-2)

    def _times(self, q: Int[jax.Array, "B N T"], k: Int[jax.Array, "B N S"], start: int) -> Float[jax.Array, "B N T S"]:
        """m_ij of queries and keys of which all see all, the first key stored at `start`."""
        rows, columns = q.shape[-1], k.shape[-1]
        if columns <= self.block or max(rows, columns) <= self.exact:
            return jnp.ones((*q.shape, columns))
        if self.causal:
            block_q = jnp.minimum(jnp.sum(k[..., None, :] < q[..., None], axis=-1), columns - 1) // self.block
        else:
            block_q = _ranks(q) * -(-columns // self.block) // rows
        same = block_q[..., None] == (_ranks(k) // self.block)[..., None, :]
        drawn = self._drawn(q.shape[1], columns, start)[:, None] * (columns / max(self.samples, 1))
        return jnp.where(same, 1.0, drawn)

    def _drawn(self, heads: int, count: int, start: int) -> Int[np.ndarray, "N S"]:
        """How often each of `count` keys is drawn, by raw words, which numpy keeps the same in every version."""
        words = np.random.PCG64([self.seed, start, count]).random_raw((heads, self.samples)) % count
        return (words[..., None] == np.arange(count, dtype=np.uint64)).sum(axis=1).astype(np.float32)


def _ranks(bins: Int[jax.Array, "B N S"]) -> Int[jax.Array, "B N S"]:
    """The place of each among all, sorted, equal ones in the order in which they are stored."""
    return jnp.argsort(jnp.argsort(bins, axis=-1, stable=True), axis=-1)
