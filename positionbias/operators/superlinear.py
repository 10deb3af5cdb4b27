"""Attention that searches for spans among anchors that grow apart."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Int, Mapped
from positionbias.operators.base import reasons, scores
from positionbias.operators.choosing import Choosing, all_pairs
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "superlinear")
@dataclasses.dataclass(frozen=True)
class Superlinear(Choosing):
    """Superlinear multi-step attention with two steps: a search among anchors, and softmax over spans around the best.

    Query i has its last (`inside` + 1)^2 - 1 keys in a window, and before it the anchors i - j^2 + 1 for every j above
    `inside`. A query of its own, x W, scores them; around each of the `top` best the span from ceil(`back` sqrt(i + 1))
    keys before to ceil(`front` sqrt(i + 1)) after it, as far as it lies before the window, is seen together with the
    window by a softmax, and the results are added with the softmax of the search scores for weights: keys in two spans
    count in both, and by these weights alone the search is trained. Where no anchor is there, the window is seen.

    The defaults are those of the released package (2026); its anchors at other powers are left out. Of anchors and
    spans a mask hides what it hides.
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
        return {"searched": x @ params["search"].astype(x.dtype)}

    @property
    def window(self) -> int:
        """How many keys, the query's own the last, are always seen."""
        return (self.inside + 1) ** 2 - 1

    def anchors(self, length: int) -> Int[np.ndarray, "T J"]:
        """Where each query's anchors are; below 0 where there is none."""
        stripes = np.arange(self.inside + 1, math.isqrt(length) + 1)
        return np.arange(length)[:, None] - stripes**2 + 1

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
        length = tokens_q.length
        anchors, (near, before, after) = self.anchors(length), self._around(length)
        if anchors.shape[1] == 0:
            return masked_softmax(found, allowed & near)
        search = scores(params["searched"].reshape(q.shape), k, tokens_q, tokens_k, position, self.scaled)
        rows, at = np.arange(length)[:, None], anchors.clip(0)
        there = jnp.broadcast_to(allowed[..., rows, at] & (anchors >= 0), (*search.shape[:3], anchors.shape[1]))
        best, which = jax.lax.top_k(jnp.where(there, search[..., rows, at], -jnp.inf), min(self.top, anchors.shape[1]))
        good = jnp.take_along_axis(there, which, axis=-1)
        shares = masked_softmax(best, good) + jnp.where(jnp.any(good, axis=-1, keepdims=True), 0.0, 1 / which.shape[-1])
        chosen = jnp.take_along_axis(jnp.broadcast_to(anchors, there.shape), which, axis=-1)
        total = jnp.zeros_like(found)
        for one in range(which.shape[-1]):
            anchor = chosen[..., one, None]
            span = (np.arange(length) >= anchor - before) & (np.arange(length) <= anchor + after) & self._far(length)
            seen = allowed & (near | (span & good[..., one, None]))
            total = total + shares[..., one, None] * masked_softmax(found, seen)
        return total

    def _around(self, length: int) -> tuple[Mapped, Mapped, Mapped]:
        """Which keys are in the window, [T, T], and how far spans go back and on, [T, 1]."""
        behind = np.arange(length)[:, None] - np.arange(length)
        root = np.sqrt(np.arange(1, length + 1))[:, None]
        near = (behind >= 0) & (behind < self.window)
        before, after = (np.ceil(by * root).astype(np.int32) for by in (self.back, self.front))
        return near, before, after

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
