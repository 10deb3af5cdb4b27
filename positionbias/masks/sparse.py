"""Masks that leave keys out by how far away they are stored."""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Int, Mapped
from positionbias.masks.base import PARTIAL, Mask, from_first_key
from positionbias.masks.order import SlidingWindow
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("masks", "dilated_window")
@dataclasses.dataclass(frozen=True)
class DilatedWindow(Mask):
    """A query sees `width` keys on either side, every `dilation`-th: itself, `dilation` places away, and so on.

    Dilation 1 is `sliding_window`. With one dilation throughout, a token only ever reaches its own residue modulo the
    dilation, at any depth. Six tokens, width 2, dilation 2:

        1 0 1 0 0 0
        0 1 0 1 0 0
        1 0 1 0 1 0
        0 1 0 1 0 1
        0 0 1 0 1 0
        0 0 0 1 0 1
    """

    width: int
    dilation: int

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "a whole number from 1")
        require(self.dilation >= 1, "dilation", self.dilation, "a whole number from 1")
        most = (2**31 - 1) // self.width  # places away are int32
        require(self.dilation <= most, "dilation", self.dilation, f"at most {most} with width = {self.width}")

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        window = SlidingWindow(self.width * self.dilation)
        return ((q.index - k.index) % self.dilation == 0) & window.allowed(q, k)

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        return np.minimum(SlidingWindow(self.width * self.dilation).outline(q, k, block), PARTIAL)


@member("masks", "window_with_sinks")
@dataclasses.dataclass(frozen=True)
class WindowWithSinks(Mask):
    """A query sees keys fewer than `width` places away on either side, and the first `sinks` keys.

    `causal & window_with_sinks(w, s)` is what StreamingLLM keeps (Xiao et al. 2023, arXiv 2309.17453): the first s and
    the last w. Five tokens, width 2, one sink:

        1 1 0 0 0
        1 1 1 0 0
        1 1 1 1 0
        1 0 1 1 1
        1 0 0 1 1
    """

    width: int
    sinks: int = 4

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "a whole number from 1")
        require(self.sinks >= 0, "sinks", self.sinks, "a whole number from 0")

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return from_first_key(self, k)

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return SlidingWindow(self.width).allowed(q, k) | (k.index < self.sinks)


@member("masks", "power_of_two")
@dataclasses.dataclass(frozen=True)
class PowerOfTwo(Mask):
    """A query sees itself and the keys whose distance is a power of two, PowerAttention.

    Chen et al. 2025 (arXiv 2503.03588). d causal layers reach every distance with at most d ones in binary, so all
    below 2^d: what comes of a key goes by the ones of its distance, not by the distance. Tokens may be taken in blocks
    of `block`, between which distance is counted; `window` blocks on either side and the first `sinks` blocks are seen
    as well. Six tokens:

        1 1 1 0 1 0
        1 1 1 1 0 1
        1 1 1 1 1 0
        0 1 1 1 1 1
        1 0 1 1 1 1
        0 1 0 1 1 1
    """

    window: int = 1
    sinks: int = 0
    block: int = 1

    def __post_init__(self) -> None:
        for name, low in (("window", 1), ("sinks", 0), ("block", 1)):
            require(getattr(self, name) >= low, name, getattr(self, name), f"a whole number from {low}")

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return from_first_key(self, k)

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        row, column = q.index // self.block, k.index // self.block
        away = abs(row - column)
        return (away & (away - 1) == 0) | (away < self.window) | (column < self.sinks)
