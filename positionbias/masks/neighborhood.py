"""Masks that give every query the same number of keys nearby."""

from __future__ import annotations

import dataclasses

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask, across
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("masks", "neighborhood")
@dataclasses.dataclass(frozen=True)
class Neighborhood(Mask):
    """A query sees the `width` keys around it, always as many: at the ends the window is shifted, not cut.

    Neighborhood attention (Hassani et al. 2022, arXiv 2204.07143) in one dimension, as NATTEN has it: an even width has
    one key more before the query than after. With `dilation` (arXiv 2209.15001) the rule holds within each residue of
    the place modulo the dilation. NATTEN's causal form is `causal & sliding_window(width)`. The ends are those of the
    keys as stored, padding counted. Five tokens, width 3:

        1 1 1 0 0
        1 1 1 0 0
        0 1 1 1 0
        0 0 1 1 1
        0 0 1 1 1
    """

    width: int
    dilation: int = 1

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "a whole number from 1")
        require(self.dilation >= 1, "dilation", self.dilation, "a whole number from 1")

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return _Bound(self.width, self.dilation, across(k.index.min(axis=-1)), k.length)


@dataclasses.dataclass(frozen=True)
class _Bound(Mask):
    """A neighborhood among `count` keys, the first of which is stored at `first`."""

    width: int
    dilation: int
    first: Mapped
    count: int

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        centre, key = (q.index - self.first).clip(0, self.count - 1), k.index - self.first
        residue = centre % self.dilation
        members = (self.count - 1 - residue) // self.dilation + 1  # keys of this residue
        start = (centre // self.dilation - self.width // 2).clip(0, (members - self.width).clip(0))
        away = key // self.dilation - start
        return (key % self.dilation == residue) & (away >= 0) & (away < self.width)
