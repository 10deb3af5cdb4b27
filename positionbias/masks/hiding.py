"""Masks that read what objectives do to inputs: which they hide, and in which order they have them told."""

from __future__ import annotations

import dataclasses

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask
from positionbias.spec import member
from positionbias.tokens import Tokens


@member("masks", "masked_keys")
@dataclasses.dataclass(frozen=True)
class MaskedKeys(Mask):
    """A query sees the keys whose inputs an objective hid; `~masked_keys` takes them from all, themselves included.

    BICO (arXiv 2311.07468) reads `bidirectional & ~masked_keys`. Four tokens, the second and the last hidden:

        0 1 0 1
        0 1 0 1
        0 1 0 1
        0 1 0 1
    """

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.hidden > 0) & (q.hidden >= 0)


@member("masks", "by_rank")
@dataclasses.dataclass(frozen=True)
class ByRank(Mask):
    """A query sees the keys told before it in the order that an objective draws, and itself unless `strict`.

    ARPG (arXiv 2503.10568): causal attention over a sequence in random order, here with all left where it is stored.
    Tokens that no objective orders are of rank 0. Four tokens of ranks 2, 0, 3, 1:

        1 1 0 1
        0 1 0 0
        1 1 1 1
        0 1 0 1
    """

    strict: bool = False

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return k.rank < q.rank if self.strict else k.rank <= q.rank
