"""Attention to keys nearby and to summaries of spans, in one softmax."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import Operator, Pattern, SiteFunction
from positionbias.operators.choosing import all_pairs, in_blocks, out_of_blocks, over_all_pairs
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens

SPAN = 8  # tokens, unless told

# Of some spans: scores of their summaries [B, N, T, U], who sees which [..., T, U], and what of a summary each key is,
# [B, N, T or 1, S], where key j belongs to span `of[j]` alone.
Summaries = tuple[jax.Array, Mapped, jax.Array, np.ndarray]


@member("operators", "combiner")
@dataclasses.dataclass(frozen=True)
class Combiner(Operator):
    """Combiner: one softmax over keys and over summaries of spans, each a softmax over its own, so that all are seen.

    Ren et al. 2021 (arXiv 2107.05768). The key of a span's summary is the `pool` of its keys, the value its values
    weighted by softmax(pooled queries . keys), of the span's own queries: every query is given the same mean of a span,
    and a head cannot choose among its tokens. A query sees by `form`

    - `fixed`: its own segment of `span` tokens, 8 unless told, up to itself, and the summaries of earlier segments;
    - `logsparse`: itself, and for every l with floor(t / 2^l) odd the summary of the 2^l tokens of the block before
      its own: each earlier key once, in 1 + (ones of t in binary) summands;
    - `axial`: of tokens in rows of `span`, its own row up to itself, and of each earlier row the token in its column,
      which stands for the row: key and value are what that token's query makes of the row's keys and values.

    Of axial, the dense layers and norms around the row attention are left out. What pools queries and keys in training
    code differs (`max` here, as in that for JAX; `mean`). Without `causal`, all other segments or rows are seen, which
    logsparse has no form for. Queries and keys are rotated before they are pooled; schemes that add to scores are
    refused, as a summary has no position. Spans are counted from the first token stored, and masks may hide nothing but
    padding and, with `causal`, what is stored later.

    Products grow as T (`span` + T / `span`), T^1.5 where `span` is made to grow as T^0.5, of logsparse as T log T; of
    few tokens, and where a site reads scores or the pattern, every score is computed.
    """

    form: Literal["fixed", "logsparse", "axial"] = "fixed"
    span: int | None = None
    pool: Literal["max", "mean"] = "max"
    causal: bool = True
    scaled: bool = True

    family = "sparse attention"
    uses_bias = False
    any_mask = False
    has_pattern = True
    whole = "spans are summed up by pooled queries, which are not kept"

    def __post_init__(self) -> None:
        require(self._span >= 1, "span", self.span, "a whole number from 1")
        require(self.span is None or self.form != "logsparse", "span", self.span, "None with form = 'logsparse'")
        require(self.causal or self.form != "logsparse", "causal", self.causal, "True with form = 'logsparse'")

    @property
    def _span(self) -> int:
        return SPAN if self.span is None else self.span

    @property
    def patterns(self) -> frozenset[Pattern]:  # type: ignore[override]
        return frozenset({"causal_self"}) if self.causal else frozenset({"noncausal_self"})

    def lacking(self, pattern: Pattern) -> str:
        if pattern.endswith("cross"):
            return "spans are summed up by the queries of their own tokens"
        if self.form == "logsparse":
            return "logsparse has no form for it"
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
        length, valid = tokens_q.length, jnp.broadcast_to(jnp.asarray(tokens_k.valid), k.shape[:2])
        q, k = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        q, k = q.astype(jnp.float32) * (q.shape[-1] ** -0.5 if self.scaled else 1.0), k.astype(jnp.float32)
        awake = jnp.broadcast_to(jnp.asarray(tokens_q.valid), q.shape[:2])
        if not over_all_pairs(length, position, site):
            return (self._by_levels if self.form == "logsparse" else self._by_spans)(q, k, v, valid & awake)
        found = site("scores", jnp.einsum("BTNH,BSNH->BNTS", q, k))
        parts = [self._axial(q, k, valid)] if self.form == "axial" else self._levels(q, k, valid)
        allowed = jnp.asarray(mask.dense(tokens_q, tokens_k))
        allowed = jnp.broadcast_to(allowed, (len(q), length, length)) & self._direct(length)
        seen = [jnp.broadcast_to(allowed[:, None], found.shape)]
        seen += [jnp.broadcast_to((cover & awake[..., None])[:, None], scores.shape) for scores, cover, _, _ in parts]
        shares = masked_softmax(
            jnp.concatenate([found, *(part[0] for part in parts)], axis=-1), jnp.concatenate(seen, axis=-1)
        )
        pattern, start = shares[..., :length], length
        for scores, _, inner, of in parts:
            stop = start + scores.shape[-1]
            pattern, start = pattern + shares[..., start:stop][..., of] * inner, stop
        return jnp.einsum("BNTS,BSNK->BTNK", site("pattern", pattern).astype(v.dtype), v)

    def _by_spans(
        self, q: jax.Array, k: jax.Array, v: jax.Array, valid: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T N K"]:
        """Segments or rows of `span` tokens by themselves, with the summaries of the others."""
        rows, keys, values = (in_blocks(x, self._span) for x in (q, k, v))  # [B, U, L, N, H]
        kept = in_blocks(valid, self._span)
        if self.form == "axial":
            inner, spans = self._rows(q, k, kept)
            means = jnp.einsum("BNUCL,BULNK->BUCNK", inner.astype(v.dtype), values)
        else:
            inner, pooled = self._pools(q, k, kept, self._span)
            spans = pooled[:, :, None]  # the same for every column
            means = jnp.einsum("BNUL,BULNK->BUNK", inner.astype(v.dtype), values)[:, :, None]
        span = rows.shape[2]  # the whole sequence if that is shorter
        shape = (*spans.shape[:2], span, *spans.shape[3:])
        spans, means = jnp.broadcast_to(spans, shape), jnp.broadcast_to(means, (*shape[:-1], v.shape[-1]))
        found = [jnp.einsum("BULNH,BUMNH->BNULM", rows, keys), jnp.einsum("BULNH,BVLNH->BNULV", rows, spans)]
        own, number = np.ones((span, span), bool), np.arange(kept.shape[1])
        cover = number < number[:, None] if self.causal else number != number[:, None]
        cover = cover & jnp.any(kept, axis=-1)[:, None]
        seen = [kept[:, :, None] & (np.tril(own) if self.causal else own), cover[:, :, None]]
        seen = [jnp.broadcast_to((x & kept[..., None])[:, None], y.shape) for x, y in zip(seen, found, strict=True)]
        shares = masked_softmax(jnp.concatenate(found, axis=-1), jnp.concatenate(seen, axis=-1)).astype(v.dtype)
        mixed = jnp.einsum("BNULM,BUMNK->BULNK", shares[..., :span], values)
        mixed = mixed + jnp.einsum("BNULV,BVLNK->BULNK", shares[..., span:], means)
        return out_of_blocks(mixed, q.shape[1])

    def _by_levels(
        self, q: jax.Array, k: jax.Array, v: jax.Array, valid: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T N K"]:
        """Each token by itself, with the summary of one block at most of each size."""
        found, seen, values = [jnp.einsum("BTNH,BTNH->BNT", q, k)], [valid], [v]
        for level in range((q.shape[1] - 1).bit_length()):
            kept, of = in_blocks(valid, 2**level), np.arange(q.shape[1]) >> level
            inner, pooled = self._pools(q, k, kept, 2**level)
            means = jnp.einsum("BNUL,BULNK->BUNK", inner.astype(v.dtype), in_blocks(v, 2**level))
            before = np.maximum(of - 1, 0)
            found.append(jnp.einsum("BTNH,BTNH->BNT", q, pooled[:, before]))
            seen.append((of % 2 == 1) & jnp.any(kept, axis=-1)[:, before] & valid)
            values.append(means[:, before])
        told = jnp.broadcast_to(jnp.stack(seen, axis=-1)[:, None], (*found[0].shape, len(seen)))
        shares = masked_softmax(jnp.stack(found, axis=-1), told).astype(v.dtype)
        return jnp.einsum("BNTW,WBTNK->BTNK", shares, jnp.stack(values))

    def _direct(self, length: int) -> Bool[np.ndarray, "T S"]:
        """Which keys are seen by themselves."""
        of = np.arange(length) // (1 if self.form == "logsparse" else self._span)
        return of[:, None] == of if not self.causal else (of[:, None] == of) & np.tri(length, dtype=bool)

    def _levels(self, q: jax.Array, k: jax.Array, valid: jax.Array) -> list[Summaries]:
        """The summaries of blocks: of segments, or of 1, 2, 4, ... tokens."""
        length = q.shape[1]
        if self.form == "fixed":
            return [self._blocks(q, k, valid, self._span)]
        return [self._blocks(q, k, valid, 2**level) for level in range((length - 1).bit_length())]

    def _blocks(self, q: jax.Array, k: jax.Array, valid: jax.Array, size: int) -> Summaries:
        kept = in_blocks(valid, size)  # [B, U, L]
        inner, pooled = self._pools(q, k, kept, size)
        inner = inner.reshape(*inner.shape[:2], 1, -1)[..., : q.shape[1]]
        of, blocks = np.arange(q.shape[1]) // size, np.arange(kept.shape[1])
        if self.form == "logsparse":
            cover = (of[:, None] % 2 == 1) & (blocks == of[:, None] - 1)
        else:
            cover = blocks < of[:, None] if self.causal else blocks != of[:, None]
        scores = jnp.einsum("BTNH,BUNH->BNTU", q, pooled)
        return scores, cover & jnp.any(kept, axis=-1)[:, None], inner, of

    def _pools(
        self, q: jax.Array, k: jax.Array, kept: Bool[jax.Array, "B U L"], size: int
    ) -> tuple[Float[jax.Array, "B N U L"], Float[jax.Array, "B U N H"]]:
        """What of the summary of a block each of its keys is, and the pooled key."""
        pooled_q, pooled_k = (self._pooled(in_blocks(x, size), kept) for x in (q, k))
        inner = jnp.einsum("BUNH,BULNH->BNUL", pooled_q, in_blocks(k, size))
        return masked_softmax(inner, kept[:, None]), pooled_k

    def _pooled(self, x: Float[jax.Array, "B U L N H"], kept: Bool[jax.Array, "B U L"]) -> jax.Array:
        inside = kept[..., None, None]
        if self.pool == "mean":
            return jnp.sum(x * inside, axis=2) / jnp.maximum(jnp.sum(inside, axis=2), 1)
        return jnp.where(jnp.any(inside, axis=2), jnp.max(jnp.where(inside, x, -jnp.inf), axis=2), 0.0)

    def _rows(
        self, q: jax.Array, k: jax.Array, kept: Bool[jax.Array, "B R C"]
    ) -> tuple[Float[jax.Array, "B N R C L"], Float[jax.Array, "B R C N H"]]:
        """What of each row a token of it makes, and the key that it makes."""
        # What a token in padding asks is not heard.
        asking = in_blocks(q, self._span) * kept[..., None, None]
        inner = jnp.einsum("BRCNH,BRLNH->BNRCL", asking, in_blocks(k, self._span))
        inner = masked_softmax(inner, kept[:, None, :, None])
        return inner, jnp.einsum("BNRCL,BRLNH->BRCNH", inner, in_blocks(k, self._span))

    def _axial(self, q: jax.Array, k: jax.Array, valid: jax.Array) -> Summaries:
        kept = in_blocks(valid, self._span)  # [B, R, C]
        inner, keys = self._rows(q, k, kept)
        of, column = np.divmod(np.arange(q.shape[1]), self._span)
        rows = np.arange(kept.shape[1])
        scores = jnp.einsum("BTNH,BRTNH->BNTR", q, keys[:, :, column])
        cover = rows < of[:, None] if self.causal else rows != of[:, None]
        shares = jnp.moveaxis(inner, 3, 2)[:, :, column]  # [B, N, T, R, L]
        shares = shares.reshape(*shares.shape[:3], -1)[..., : q.shape[1]]
        return scores, cover & jnp.any(kept, axis=-1)[:, None], shares, of

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        return all_pairs(tokens_q, tokens_k, self.causal)

    def state_size(self, dims: Dims) -> int:
        length, span = dims.length, min(self._span, dims.length)
        pairs, queries = {
            "fixed": (span - (-length // self._span), 1),  # of the own segment, of summaries; a pooled query
            "logsparse": (length, length.bit_length()),  # blocks that grow need their keys; a pooled query each
            "axial": (length + span, span),  # of every token that stands for its row; the own row, with queries
        }[self.form]
        return dims.heads * (pairs * (dims.head_size + dims.values) + queries * dims.head_size)
