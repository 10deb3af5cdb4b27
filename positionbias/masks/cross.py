"""Masks of cross attention, which compare places in two sequences."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask, across
from positionbias.spec import ConfigError, member, require
from positionbias.tokens import Tokens


@member("masks", "causal_cross")
@dataclasses.dataclass(frozen=True)
class CausalCross(Mask):
    """Query n of Q sees the frames f = 1..F of the share of time up to it: (f - 1) / F < (n + 1) / Q.

    The causal cross attention of Video-CCAM (arXiv 2408.14023), whose queries are as many whatever the number of
    frames. Queries are counted from 0 as they are stored, and the last frame among the keys is F; all queries see what
    is in no frame (0). `group` names the field that holds the frame. Four queries and keys, in frames 1, 1, 2, 2:

        1 1 0 0
        1 1 0 0
        1 1 1 1
        1 1 1 1
    """

    group: Literal["frame", "segment"] = "frame"

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        last = getattr(k, self.group).max(axis=-1)
        most = (2**31 - 1) // (q.length + 1)
        farthest = 0 if isinstance(last, jax.Array) else int(np.max(last))  # traced, it is not known
        if farthest > most:
            raise ConfigError(
                f"causal_cross reads a {self.group} of {farthest}; allowed: up to {most} with {q.length} queries."
            )
        return _CausalCross(self.group, across(q.index.min(axis=-1)), q.length, across(last))


@dataclasses.dataclass(frozen=True)
class _CausalCross(Mask):
    """`causal_cross` for `queries` that are stored from `first` on, and frames up to `last`."""

    group: str
    first: Mapped
    queries: int
    last: Mapped

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (getattr(k, self.group) - 1) * self.queries < (q.index - self.first + 1) * self.last


@member("masks", "aligned_cross")
@dataclasses.dataclass(frozen=True)
class AlignedCross(Mask):
    """Query n sees the `ratio` keys that belong to it: n * ratio to n * ratio + ratio - 1.

    The alignment of FaceFormer (Fan et al. 2022, arXiv 2112.05329), of frames and a sound `ratio` times as fast. Either
    side is counted from its first token as stored. Four queries and keys, ratio 2:

        1 1 0 0
        0 0 1 1
        0 0 0 0
        0 0 0 0
    """

    ratio: int = 1

    def __post_init__(self) -> None:
        require(self.ratio >= 1, "ratio", self.ratio, "a whole number from 1")

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return _AlignedCross(self.ratio, across(q.index.min(axis=-1)), across(k.index.min(axis=-1)))


@dataclasses.dataclass(frozen=True)
class _AlignedCross(Mask):
    """`aligned_cross` for sides that are stored from `first_query` and `first_key` on."""

    ratio: int
    first_query: Mapped
    first_key: Mapped

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.index - self.first_key) // self.ratio == q.index - self.first_query
