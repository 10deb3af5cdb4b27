"""Masks that read which group a token belongs to."""

from __future__ import annotations

import dataclasses

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask
from positionbias.spec import member
from positionbias.tokens import Tokens


@member("masks", "segments")
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """A query sees the keys of its own segment only (packed documents, separate lists).

    Four tokens in segments 0, 0, 1, 1:

        1 1 0 0
        1 1 0 0
        0 0 1 1
        0 0 1 1
    """

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return q.segment == k.segment
