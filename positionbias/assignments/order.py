"""Assignments that count tokens in the order in which they are stored."""

from __future__ import annotations

import dataclasses

from positionbias.arrays import Mapped
from positionbias.assignments.base import Assignment
from positionbias.spec import member, require
from positionbias.tokens import Tokens

FARTHEST = 2**20


@member("assignments", "sequential")
@dataclasses.dataclass(frozen=True)
class Sequential(Assignment):
    """As the task counts them: 0, 1, 2, ... in the order stored, padding in front left out."""

    def positions(self, tokens: Tokens) -> Mapped:
        return tokens.position


@member("assignments", "reversed")
@dataclasses.dataclass(frozen=True)
class Reversed(Assignment):
    """From the end: the last token is told 0, the first the largest position."""

    def positions(self, tokens: Tokens) -> Mapped:
        return tokens.position.max(axis=-1, keepdims=True) - tokens.position


@member("assignments", "padded")
@dataclasses.dataclass(frozen=True)
class Padded(Assignment):
    """In order from `by` on, as if so many tokens stood in front that nobody sees."""

    by: int

    def __post_init__(self) -> None:
        require(0 <= self.by <= FARTHEST, "by", self.by, f"a whole number from 0 to {FARTHEST}")

    def positions(self, tokens: Tokens) -> Mapped:
        return tokens.position + self.by
