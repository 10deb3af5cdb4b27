"""Attention that searches for spans among anchors that grow apart."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Mapped, rows_times
from positionbias.masks.base import Mask
from positionbias.operators.asked import taken
from positionbias.operators.base import reasons, scores
from positionbias.operators.choosing import Choosing, all_pairs, in_blocks, out_of_blocks
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens

CHUNK = 64  # queries at a time whose keys are gathered


@member("operators", "superlinear")
@dataclasses.dataclass(frozen=True)
class Superlinear(Choosing):
    """Superlinear multi-step attention with two steps: a search among anchors, and softmax over spans around the best.

    Query i has its last (`inside` + 1)^2 - 1 keys in a window, and before it the anchors i - j^2 + 1 for every j above
    `inside`. A query of its own, x W, scores them; around each of the `top` best the span from ceil(`back` sqrt(i + 1))
    keys before to ceil(`front` sqrt(i + 1)) after it, as far as it lies before the window, is seen together with the
    window by a softmax, and the results are added with the softmax of the search scores for weights: keys in two spans
    count in both, and by these weights alone the search is trained. Where no anchor is there, the window is seen.

    The paper is arXiv 2601.18401. The defaults are those of the released package (2026); its anchors at other powers
    are left out. Of anchors and spans a mask hides what it hides.

    Anchors and the keys of spans are gathered, a chunk of queries after another, so that products grow as T^1.5. Of few
    tokens, where a site reads scores or the pattern, and with schemes that add to scores, every score is computed.
    """

    inside: int = 3
    top: int = 2
    back: float = 2.0
    front: float = 0.0
    scaled: bool = True

    patterns = frozenset({"causal_self"})
    lacks = reasons(
        noncausal_self="it searches among what comes before a query",
        cross="its window and its anchors are counted back from a query's own place",
    )
    whole = "it searches by queries of its own, made of the stream"

    def __post_init__(self) -> None:
        require(self.inside >= 1, "inside", self.inside, "a whole number from 1")
        require(self.top >= 1, "top", self.top, "a whole number from 1")
        for name in ("back", "front"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number from 0")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {"search": Matrix((dims.width, dims.heads * dims.head_size), "query", dims.width)}

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        return {"searched": rows_times(x, params["search"])}

    @property
    def window(self) -> int:
        """How many keys, the query's own the last, are always seen."""
        return (self.inside + 1) ** 2 - 1

    def anchors(self, length: int) -> Int[np.ndarray, "T J"]:
        """Where each query's anchors are; below 0 where there is none."""
        return np.arange(length)[:, None] - self.away(length)

    def away(self, length: int) -> Int[np.ndarray, "J"]:
        """How far before a query its anchors are, as far as there are any among so many tokens."""
        return np.arange(self.inside + 1, math.isqrt(length) + 1) ** 2 - 1

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
        length = tokens_q.length
        anchors, (near, before, after) = self.anchors(length), self._around(length)
        if anchors.shape[1] == 0:
            return masked_softmax(found, allowed & near)
        search = scores(params["searched"].reshape(q.shape), k, tokens_q, tokens_k, position, self.scaled)
        rows, at = np.arange(length)[:, None], anchors.clip(0)
        there = jnp.broadcast_to(allowed[..., rows, at] & (anchors >= 0), (*search.shape[:3], anchors.shape[1]))
        shares, which, good = self._best(search[..., rows, at], there)
        chosen = jnp.take_along_axis(jnp.broadcast_to(anchors, there.shape), which, axis=-1)
        total = jnp.zeros_like(found)
        for one in range(which.shape[-1]):
            anchor = chosen[..., one, None]
            span = (np.arange(length) >= anchor - before) & (np.arange(length) <= anchor + after) & self._far(length)
            seen = allowed & (near | (span & good[..., one, None]))
            total = total + shares[..., one, None] * masked_softmax(found, seen)
        return total

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
        length = q.shape[1]
        window, away = min(self.window, length), self.away(length)
        away = away if len(away) else np.array([length])  # one at least, which is there for no query
        searching = position.rotate(params["searched"].reshape(q.shape), tokens_q, "query")
        q, k = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        scale = q.shape[-1] ** -0.5 if self.scaled else 1.0
        by_head = [jnp.swapaxes(x, 1, 2) for x in (k, v)]  # [B, N, S, H]
        before, after = self._reach(length)
        span = np.arange(min(int((before + after).max()) + 1, length))
        allowed = _Allowed(mask.bind(tokens_q, tokens_k), tokens_q, tokens_k, len(q))

        def chunk(part: tuple[jax.Array, ...]) -> jax.Array:
            q, searching, rows, before, after = part  # [B, L, N, H], [L]
            close = rows[:, None] - np.arange(window)
            found = jnp.einsum("BLNH,BLWNH->BNLW", q, k[:, close.clip(0)], preferred_element_type=jnp.float32)
            found, seen = found * scale, allowed(rows, close)[:, None]
            anchors = rows[:, None] - away
            search = jnp.einsum(
                "BLNH,BLJNH->BNLJ", searching, k[:, anchors.clip(0)], preferred_element_type=jnp.float32
            )
            there = jnp.broadcast_to(allowed(rows, anchors)[:, None], search.shape)
            shares, which, good = self._best(search * scale, there)
            chosen = jnp.take_along_axis(jnp.broadcast_to(anchors, search.shape), which, axis=-1)[..., None]
            reach = jnp.maximum(chosen - before[:, None, None], 0) + span  # [B, N, L, C, M], none before the first key
            inside = good[..., None] & (reach <= chosen + after[:, None, None])
            inside = inside & (reach <= rows[:, None, None] - window)
            far_k, far_v = (jax.vmap(jax.vmap(lambda x, at: x[at]))(x, reach.clip(0)) for x in by_head)
            far = jnp.einsum("BLNH,BNLCMH->BNLCM", q, far_k, preferred_element_type=jnp.float32) * scale
            flat = reach.reshape(len(reach), -1, reach.shape[-2] * reach.shape[-1])  # a row a head and query
            inside = inside & allowed(jnp.tile(rows, q.shape[2]), flat).reshape(reach.shape)
            both = [jnp.broadcast_to(x[:, :, :, None], (*far.shape[:4], window)) for x in (found, seen)]
            weights = masked_softmax(jnp.concatenate([both[0], far], -1), jnp.concatenate([both[1], inside], -1))
            weights = (weights * shares[..., None]).astype(v.dtype)
            near = jnp.sum(weights[..., :window], axis=3)
            mixed = jnp.einsum("BNLW,BLWNK->BLNK", near, v[:, close.clip(0)])
            return mixed + jnp.einsum("BNLCM,BNLCMK->BLNK", weights[..., window:], far_v)

        rows = np.arange(length, dtype=np.int32)
        parts = [jnp.moveaxis(in_blocks(x, CHUNK), 1, 0) for x in (q, searching)]
        parts += [in_blocks(jnp.asarray(x)[None], CHUNK)[0] for x in (rows, before, after)]
        mixed = jax.lax.map(jax.checkpoint(chunk), tuple(parts))
        return out_of_blocks(jnp.moveaxis(mixed, 0, 1), length)

    def _best(
        self, search: Float[jax.Array, "B N T J"], there: Bool[jax.Array, "B N T J"]
    ) -> tuple[Float[jax.Array, "B N T C"], Int[jax.Array, "B N T C"], Bool[jax.Array, "B N T C"]]:
        """The shares of the best anchors, all alike where there is none, which they are, and whether each is there."""
        best, which = jax.lax.top_k(jnp.where(there, search, -jnp.inf), min(self.top, search.shape[-1]))
        good = jnp.take_along_axis(there, which, axis=-1)
        shares = masked_softmax(best, good) + jnp.where(jnp.any(good, axis=-1, keepdims=True), 0.0, 1 / which.shape[-1])
        return shares, which, good

    def _reach(self, length: int) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]:
        """How far spans go back and on, of each query, as far as there are any keys."""
        root = np.sqrt(np.arange(1, length + 1))
        before, after = (np.minimum(np.ceil(by * root), length).astype(np.int32) for by in (self.back, self.front))
        return before, after

    def _around(self, length: int) -> tuple[Mapped, Mapped, Mapped]:
        """Which keys are in the window, [T, T], and how far spans go back and on, [T, 1]."""
        behind = np.arange(length)[:, None] - np.arange(length)
        near = (behind >= 0) & (behind < self.window)
        before, after = self._reach(length)
        return near, before[:, None], after[:, None]

    def _far(self, length: int) -> Mapped:
        """Which keys are before the window, [T, T]."""
        return np.arange(length)[:, None] - np.arange(length) >= self.window

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        length = tokens_q.length
        seen, before, after = self._around(length)
        rows, keys = np.arange(length), np.arange(length)
        for anchor in self.anchors(length).T:
            there = allowed[..., rows, anchor.clip(0)] & (anchor >= 0)
            span = (keys >= anchor[:, None] - before) & (keys <= anchor[:, None] + after) & self._far(length)
            seen = seen | (there[..., None] & span)
        return allowed & seen & all_pairs(tokens_q, tokens_k, causal=True)


class _Allowed(NamedTuple):
    """Who may see whom, of pairs told by their places."""

    mask: Mask  # bound to the tokens
    tokens_q: Tokens
    tokens_k: Tokens
    batch: int

    def __call__(self, rows: Int[jax.Array, "R"], keys: Int[jax.Array, "... R M"]) -> Bool[jax.Array, "B R M"]:
        """Of queries and the keys of each, in every example alike or not; those below 0 are none."""
        keys = jnp.broadcast_to(keys, (self.batch, *keys.shape[-2:]))
        flat = keys.reshape(self.batch, -1)
        found = Tokens(*(field.reshape(keys.shape) for field in taken(self.tokens_k, flat)))
        asking = Tokens(
            *(jnp.asarray(field)[..., rows.clip(0, self.tokens_q.length - 1), None] for field in self.tokens_q)
        )
        return self.mask.allowed(asking, found) & asking.valid & found.valid & (keys >= 0)
