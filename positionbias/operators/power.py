"""Attention at distances that are powers of two."""

from __future__ import annotations

import dataclasses

from positionbias.masks.base import Mask
from positionbias.masks.sparse import PowerOfTwo
from positionbias.operators.own_mask import OwnMask
from positionbias.spec import member


@member("operators", "power")
@dataclasses.dataclass(frozen=True)
class Power(OwnMask):
    """PowerAttention: softmax over the keys a power of two away, a window around the query, and the first ones.

    Chen et al. 2025 (arXiv 2503.03588); the mask is `power_of_two` with the same arguments, and the layer's mask holds
    beside it. Released are blocks of 256, five blocks of window and one of sinks. `impl` as in `softmax`.
    """

    known_as = ("powerattention",)

    window: int = 1
    sinks: int = 0
    block: int = 1
    scaled: bool = True
    impl: str | None = None

    @property
    def own(self) -> Mask:
        return PowerOfTwo(self.window, self.sinks, self.block)
