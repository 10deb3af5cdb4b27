"""Masks that read which group a token belongs to."""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Int, Mapped
from positionbias.masks.base import Bounds, Mask
from positionbias.spec import member, require
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

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        return Bounds.of(q.segment, k.segment, block).equal()


@member("masks", "shared_prompt")
@dataclasses.dataclass(frozen=True)
class SharedPrompt(Mask):
    """Causal, within the prompt (segment 0) and one's own segment only: many responses to one prompt, side by side.

    The shared-prompt attention of DualKV (Gai et al. 2026, arXiv 2605.15422). If the positions of each response go on
    from the prompt's, the prompt and a response come out as they do alone. Five tokens in segments 0, 0, 1, 2, 2:

        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        1 1 0 1 0
        1 1 0 1 1
    """

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.index <= q.index) & ((k.segment == 0) | (k.segment == q.segment))


@member("masks", "modality_mutual")
@dataclasses.dataclass(frozen=True)
class ModalityMutual(Mask):
    """Causal, but tokens of role `modality` also see those of role `question` that come after them.

    The modality-mutual attention of AKI (arXiv 2503.02597), whose sequences are images, question, answer. Through the
    rows of the modality, a question token sees later question tokens at depth 2; a loss on question tokens leaks, one
    on answers does not. Five tokens in roles 1, 1, 2, 2, 0 with modality 1, question 2:

        1 0 1 1 0
        1 1 1 1 0
        1 1 1 0 0
        1 1 1 1 0
        1 1 1 1 1
    """

    modality: int
    question: int

    roles = ("modality", "question")

    def __post_init__(self) -> None:
        for name in ("modality", "question"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a role, a whole number from 0")
        require(self.modality != self.question, "question", self.question, "another role than modality")

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.index <= q.index) | ((q.role == self.modality) & (k.role == self.question))


@member("masks", "condition_causal")
@dataclasses.dataclass(frozen=True)
class ConditionCausal(Mask):
    """Tokens of role `condition` see each other only, and every token sees them; the rest see one another.

    After EasyControl (arXiv 2503.07027), where what conditions are turned into can be kept once for all steps. Five
    tokens in roles 0, 1, 1, 0, 0 with condition 1:

        1 1 1 1 1
        0 1 1 0 0
        0 1 1 0 0
        1 1 1 1 1
        1 1 1 1 1
    """

    condition: int

    roles = ("condition",)

    def __post_init__(self) -> None:
        require(self.condition >= 0, "condition", self.condition, "a role, a whole number from 0")

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.role == self.condition) | (q.role != self.condition)
