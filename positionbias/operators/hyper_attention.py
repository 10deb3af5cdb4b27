"""Attention to keys of like hash, with a sample of the others."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Mapped
from positionbias.kernels.softmax_attention import xla
from positionbias.kernels.softmax_attention.problem import NOTHING_SEEN
from positionbias.masks.base import Mask
from positionbias.masks.order import Bidirectional, Causal
from positionbias.operators.base import Operator, Pattern, SiteFunction, over_heads, scores
from positionbias.operators.choosing import over_all_pairs
from positionbias.operators.recurrent import of_one_sequence, sees_all
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
    goes to the block where its hash belongs among the sorted keys. So the causal form reads another sequence, whole,
    where the other sorts the queries of one and the keys of the other, and pairs their blocks in order; padding is in
    none. Directions and samples come from `seed`, the same in every step and sequence, where published code draws them
    anew. Masks that hide more than order does are refused.

    Each query's block and the samples are gathered, T (`block` + `samples`) pairs, and in the causal form as many for
    every time the sequence is halved: products grow as T log T. Of few tokens, where a site reads scores or the
    pattern, and with schemes that add to scores, every score is computed.
    """

    causal: bool = True
    block: int = 32
    samples: int = 32
    exact: int = 64
    projections: int = 7
    seed: int = 0
    scaled: bool = True

    family = "sparse attention"
    any_mask = False
    has_pattern = True
    whole = "every key that comes moves the blocks that keys are sorted into"

    def __post_init__(self) -> None:
        for name, low in (("block", 1), ("samples", 0), ("exact", 1), ("projections", 1), ("seed", 0)):
            require(getattr(self, name) >= low, name, getattr(self, name), f"a whole number from {low}")
        require(self.samples <= 65536, "samples", self.samples, "at most 65536")
        require(self.projections <= 30, "projections", self.projections, "at most 30")

    @property
    def patterns(self) -> frozenset[Pattern]:  # type: ignore[override]
        return frozenset({"causal_self" if self.causal else "noncausal_self", "noncausal_cross"})

    @property
    def mixes_queries(self) -> bool:  # type: ignore[override]
        return not self.causal

    def lacking(self, pattern: Pattern) -> str:
        if pattern == "causal_cross":
            return "keys are sorted among all of their sequence, those behind a query too"
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
        turned = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        sides = zip(turned, (tokens_q, tokens_k), strict=True)
        bins_q, bins_k = (
            jnp.where(jnp.asarray(told.valid)[..., None, :], self._hash(x), self._padding) for x, told in sides
        )
        halves = self.causal and not (sees_all(mask) or _differ(tokens_q, tokens_k))
        if not over_all_pairs(q.shape[1], position, site):
            awake = jnp.broadcast_to(jnp.asarray(tokens_q.valid), q.shape[:2])
            valid = jnp.broadcast_to(jnp.asarray(tokens_k.valid), k.shape[:2])
            return self._gathered(*turned, v, bins_q, bins_k, awake, valid, halves)
        found = site("scores", scores(q, k, tokens_q, tokens_k, position, self.scaled))
        times = self._halved(bins_q, bins_k, 0) if halves else self._times(bins_q, bins_k, 0)
        allowed = over_heads(mask.dense(tokens_q, tokens_k)) & (times > 0)
        pattern = site("pattern", masked_softmax(found + jnp.log(jnp.where(times > 0, times, 1.0)), allowed))
        return jnp.einsum("BNTS,BSNK->BTNK", pattern.astype(v.dtype), v)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        every = Bidirectional().dense(tokens_q, tokens_k)
        if not (self.causal and of_one_sequence(tokens_q, tokens_k)):
            return every
        stored = np.tril(np.ones((tokens_q.length, tokens_k.length), bool))
        return Causal().dense(tokens_q, tokens_k) | (every & stored)

    @property
    def _padding(self) -> int:
        """What stands for the hash of padding, which is sorted to the end."""
        return 2**self.projections

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
        block_q = self._blocks(q, jnp.sort(k, axis=-1))
        same = block_q[..., None] == (_ranks(k) // self.block)[..., None, :]
        drawn = self._drawn(q.shape[1], columns, start)[:, None] * (columns / max(self.samples, 1))
        return jnp.where(same, 1.0, drawn)

    def _blocks(self, q: Int[jax.Array, "... R"], k: Int[jax.Array, "... S"]) -> Int[jax.Array, "... R"]:
        """The block of keys `k`, sorted, that belongs to each query: by its hash, or by its place among the queries.

        Of what is no padding, so that every query has a block with keys, if there are any.
        """
        rows, columns = (jnp.sum(x < self._padding, axis=-1, keepdims=True) for x in (q, k))
        if self.causal:
            before = jnp.vectorize(jnp.searchsorted, signature="(s),(r)->(r)")(k, q)
            return jnp.clip(before, 0, jnp.maximum(columns - 1, 0)) // self.block
        count = -(-columns // self.block)
        return jnp.clip(_portion(_ranks(q), count, jnp.maximum(rows, 1)), 0, jnp.maximum(count - 1, 0))

    def _drawn(self, heads: int, count: int, start: int) -> Int[np.ndarray, "N S"]:
        """How often each of `count` keys is drawn."""
        samples = self._samples(heads, count, start)
        return (samples[..., None] == np.arange(count)).sum(axis=1).astype(np.float32)

    def _samples(self, heads: int, count: int, start: int) -> Int[np.ndarray, "N M"]:
        """Which of `count` keys are drawn, by raw words, which numpy keeps the same in every version."""
        words = np.random.PCG64([self.seed, start, count]).random_raw((heads, self.samples)) % count
        return words.astype(np.int32)

    def _gathered(
        self,
        q: Float[jax.Array, "B T N H"],
        k: Float[jax.Array, "B S N H"],
        v: Float[jax.Array, "B S N K"],
        bins_q: Int[jax.Array, "B N T"],
        bins_k: Int[jax.Array, "B N S"],
        awake: Bool[jax.Array, "B T"],
        valid: Bool[jax.Array, "B S"],
        halves: bool,
    ) -> Float[jax.Array, "B T N K"]:
        """The call by blocks and samples: parts of equal length at once, what each query saw merged by its sums."""
        by_head = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]

        def part(x: jax.Array, starts: np.ndarray, length: int) -> jax.Array:
            """Of [B, N, T, ...] the runs of so many from `starts` on, [B, N, G, length, ...]."""
            return x[:, :, starts[:, None] + np.arange(length)]

        def looked(rows: tuple[np.ndarray, int], keys: tuple[np.ndarray, int], own: bool) -> _Seen:
            arrays = part(by_head[0], *rows), part(by_head[1], *keys), part(by_head[2], *keys)
            there = part(valid[:, None], *keys)
            if own:
                return self._seen_by_all(*arrays, there[..., None, :] & np.tril(np.ones((keys[1],) * 2, bool)))
            return self._seen(*arrays, part(bins_q, *rows), part(bins_k, *keys), there, keys[0])

        start = np.zeros(1, np.int32)
        if not halves:
            found = looked((start, q.shape[1]), (start, k.shape[1]), own=False).mixed[:, :, 0]
            return jnp.swapaxes(found * awake[:, None, :, None], 1, 2).astype(v.dtype)
        total = _Seen(jnp.zeros(by_head[2].shape, jnp.float32), jnp.full(bins_q.shape, NOTHING_SEEN, jnp.float32))
        parts = {q.shape[1]: start}
        while parts:
            later: dict[int, list[np.ndarray]] = {}
            for length, starts in parts.items():
                middle = length // 2
                if length <= self.exact:
                    total = total.joined(looked((starts, length), (starts, length), own=True), starts, length)
                    continue
                behind = starts + middle, length - middle
                total = total.joined(looked(behind, (starts, middle), own=False), *behind)
                later.setdefault(middle, []).append(starts)
                later.setdefault(length - middle, []).append(behind[0])
            parts = {length: np.concatenate(starts) for length, starts in later.items()}
        return jnp.swapaxes(total.mixed * awake[:, None, :, None], 1, 2).astype(v.dtype)

    def _seen_by_all(self, q: jax.Array, k: jax.Array, v: jax.Array, allowed: Bool[jax.Array, "..."]) -> _Seen:
        """Of parts in which each query may see every key, [B, N, G, R, H] and [B, N, G, S, H], as far as `allowed`."""
        found = jnp.einsum("BNGRH,BNGSH->BNGRS", q, k, preferred_element_type=jnp.float32) * self._scale(q)
        weights, sums = xla.masked_softmax(found, allowed)
        return _Seen(jnp.einsum("BNGRS,BNGSK->BNGRK", weights.astype(v.dtype), v).astype(jnp.float32), sums)

    def _seen(
        self,
        q: Float[jax.Array, "B N G R H"],
        k: Float[jax.Array, "B N G S H"],
        v: Float[jax.Array, "B N G S K"],
        bins_q: Int[jax.Array, "B N G R"],
        bins_k: Int[jax.Array, "B N G S"],
        there: Bool[jax.Array, "B 1 G S"],
        starts: Int[np.ndarray, "G"],
    ) -> _Seen:
        """What `_times` weighs, of many parts at once: of each query the keys of its block, and the samples."""
        rows, columns = q.shape[3], k.shape[3]
        if columns <= self.block or max(rows, columns) <= self.exact:
            return self._seen_by_all(q, k, v, there[..., None, :])
        order = jnp.argsort(bins_k, axis=-1, stable=True)
        block = self._blocks(bins_q, jnp.take_along_axis(bins_k, order, axis=-1))
        places = block[..., None] * self.block + np.arange(self.block)  # among those in order
        same = jnp.take_along_axis(order, places.clip(0, columns - 1).reshape(*order.shape[:3], -1), axis=-1)
        samples = np.stack([self._samples(q.shape[1], columns, start) for start in starts], axis=1)  # [N, G, M]
        drawn = jnp.broadcast_to(samples, (len(q), *samples.shape))
        take = jnp.vectorize(lambda x, at: x[at], signature="(s,h),(m)->(m,h)")
        there = jnp.broadcast_to(there, bins_k.shape)
        same_k, same_v = (take(x, same).reshape(*places.shape, -1) for x in (k, v))
        some_k, some_v = (take(x, drawn) for x in (k, v))
        found = [
            jnp.einsum("BNGRH,BNGRLH->BNGRL", q, same_k, preferred_element_type=jnp.float32) * self._scale(q),
            jnp.einsum("BNGRH,BNGMH->BNGRM", q, some_k, preferred_element_type=jnp.float32) * self._scale(q)
            + np.log(columns / max(self.samples, 1)),
        ]
        of = jnp.take_along_axis(_ranks(bins_k), drawn, axis=-1) // self.block
        allowed = [
            jnp.take_along_axis(there, same, axis=-1).reshape(places.shape) & (places < columns),
            jnp.take_along_axis(there, drawn, axis=-1)[..., None, :] & (of[..., None, :] != block[..., None]),
        ]
        weights, sums = xla.masked_softmax(jnp.concatenate(found, axis=-1), jnp.concatenate(allowed, axis=-1))
        weights = weights.astype(v.dtype)
        mixed = jnp.einsum("BNGRL,BNGRLK->BNGRK", weights[..., : self.block], same_v)
        mixed = mixed + jnp.einsum("BNGRM,BNGMK->BNGRK", weights[..., self.block :], some_v)
        return _Seen(mixed.astype(jnp.float32), sums)

    def _scale(self, q: jax.Array) -> float:
        return q.shape[-1] ** -0.5 if self.scaled else 1.0


class _Seen(NamedTuple):
    """What queries make of the keys they saw so far."""

    mixed: Float[jax.Array, "... R K"]
    sums: Float[jax.Array, "... R"]  # the logarithms of their weights' sums

    def joined(self, more: _Seen, starts: Int[np.ndarray, "G"], length: int) -> _Seen:
        """With more of the runs of so many queries from `starts` on."""
        at = starts[:, None] + np.arange(length)
        total = jnp.logaddexp(self.sums[:, :, at], more.sums)
        shares = [jnp.exp(x - total)[..., None] for x in (self.sums[:, :, at], more.sums)]
        mixed = self.mixed[:, :, at] * shares[0] + more.mixed * shares[1]
        return _Seen(self.mixed.at[:, :, at].set(mixed), self.sums.at[:, :, at].set(total))


def _portion(
    place: Int[jax.Array, "... R"], count: Int[jax.Array, "... 1"], size: Int[jax.Array, "... 1"]
) -> Int[jax.Array, "... R"]:
    """place * count / size, rounded down, of positive numbers whose product may be beyond int32."""
    guess = (place.astype(jnp.float32) * count / size).astype(jnp.int32)
    # Off by one at most; and what it leaves of the product is right where both have wrapped around.
    return guess + (place * count - guess * size) // size


def _differ(tokens_q: Tokens, tokens_k: Tokens) -> bool:
    """Whether queries and keys are known to be of different sequences: all of one's own would tell what comes."""
    numpy = all(isinstance(tokens.index, np.ndarray) for tokens in (tokens_q, tokens_k))
    return tokens_q.length != tokens_k.length or (numpy and not of_one_sequence(tokens_q, tokens_k))


def _ranks(bins: Int[jax.Array, "B N S"]) -> Int[jax.Array, "B N S"]:
    """The place of each among all, sorted, equal ones in the order in which they are stored."""
    return jnp.argsort(jnp.argsort(bins, axis=-1, stable=True), axis=-1)
