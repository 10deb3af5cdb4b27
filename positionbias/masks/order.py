"""Masks that read the order in which tokens are stored."""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Int, Mapped
from positionbias.masks.base import FULL, Bounds, Mask, from_first_key, judged
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("masks", "bidirectional")
@dataclasses.dataclass(frozen=True)
class Bidirectional(Mask):
    """Every query sees every key.

    Four tokens:

        1 1 1 1
        1 1 1 1
        1 1 1 1
        1 1 1 1
    """

    known_as = ("full",)

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        # A comparison that always holds gives the broadcast shape under numpy, jax.numpy and in a tile alike.
        return (q.index >= 0) & (k.index >= 0)

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        return np.full((1, 1), FULL, np.int8)


@member("masks", "causal")
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """A query sees itself and what is stored before it: k.index <= q.index.

    Four tokens:

        1 0 0 0
        1 1 0 0
        1 1 1 0
        1 1 1 1
    """

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return k.index <= q.index

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        index = Bounds.of(q.index, k.index, block)
        return judged(index.most_k <= index.least_q, index.least_k <= index.most_q)


@member("masks", "sliding_window")
@dataclasses.dataclass(frozen=True)
class SlidingWindow(Mask):
    """A query sees keys fewer than `width` places away on either side: |q.index - k.index| < width.

    `causal & sliding_window(w)` is the window of Wu et al. 2025 (arXiv 2502.01951, Theorem 4.2): max(1, i-w+1)..i.
    Five tokens, width 2:

        1 1 0 0 0
        1 1 1 0 0
        0 1 1 1 0
        0 0 1 1 1
        0 0 0 1 1
    """

    known_as = ("swa",)

    width: int

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "a whole number from 1")

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (q.index - k.index < self.width) & (k.index - q.index < self.width)

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        index = Bounds.of(q.index, k.index, block)
        least, most = index.least_q - index.most_k, index.most_q - index.least_k
        return judged((most < self.width) & (least > -self.width), (least < self.width) & (most > -self.width))


@member("masks", "prefix")
@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """The first `length` tokens see each other and are seen by all; the rest is causal.

    Wu et al. 2025 (arXiv 2502.01951, Theorem 4.3). In a decoder they are the first of the decoder's. Four tokens,
    length 2:

        1 1 0 0
        1 1 0 0
        1 1 1 0
        1 1 1 1
    """

    length: int

    def __post_init__(self) -> None:
        require(self.length >= 0, "length", self.length, "a whole number from 0")

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return from_first_key(self, k)

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.index <= q.index) | (k.index < self.length)
