"""Attention to as many keys nearby for every query."""

from __future__ import annotations

import dataclasses

from positionbias.masks.base import Mask
from positionbias.masks.neighborhood import Neighborhood
from positionbias.masks.order import Causal
from positionbias.masks.sparse import DilatedWindow
from positionbias.operators.own_mask import OwnMask
from positionbias.spec import member


@member("operators", "neighborhood")
@dataclasses.dataclass(frozen=True)
class NeighborhoodAttention(OwnMask):
    """Neighborhood attention in one dimension: softmax over the `width` keys around each query.

    Hassani et al. 2022 (arXiv 2204.07143), as NATTEN has it: the mask is `neighborhood` with the same width and
    `dilation`, or with `causal` NATTEN's causal form, the last `width` keys of the query's residue modulo the dilation.
    The layer's mask holds beside it, so that under a causal one the form that is not causal is left with half of its
    window. NATTEN's strides are left out. `impl` as in `softmax`.
    """

    known_as = ("natten",)

    width: int
    dilation: int = 1
    causal: bool = False
    scaled: bool = True
    impl: str | None = None

    @property
    def own(self) -> Mask:
        if self.causal:
            return Causal() & DilatedWindow(self.width, self.dilation)
        return Neighborhood(self.width, self.dilation)
