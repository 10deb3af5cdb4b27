"""Masks that read the frame or scale of a token; `group` names another field to read in its place."""

from __future__ import annotations

import dataclasses
from typing import Literal

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask
from positionbias.spec import member, require
from positionbias.tokens import Tokens


def _same(q: Tokens, k: Tokens, group: str) -> Mapped:
    """Whether both are of one group; tokens of 0 are in none."""
    return (getattr(q, group) == getattr(k, group)) & (getattr(q, group) > 0)


@member("masks", "block_causal")
@dataclasses.dataclass(frozen=True)
class BlockCausal(Mask):
    """A query sees what is stored before it and all of its own frame; a token in no frame (0) is causal.

    The frame-wise causal mask of TC-LLaVA (arXiv 2409.03206): text is causal, and the tokens of a frame see each
    other. With group "segment", documents take the place of frames. Five tokens in frames 0, 1, 1, 2, 2:

        1 0 0 0 0
        1 1 1 0 0
        1 1 1 0 0
        1 1 1 1 1
        1 1 1 1 1
    """

    group: Literal["frame", "segment"] = "frame"

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.index <= q.index) | _same(q, k, self.group)


@member("masks", "block_causal_with_summary")
@dataclasses.dataclass(frozen=True)
class BlockCausalWithSummary(Mask):
    """`block_causal`, with tokens of role `summary` that see everything and that no other token sees.

    The projector CATP of V-CORE (Kang et al. 2026, arXiv 2601.01804), whose summary is one token after the last frame.
    Five tokens in frames 1, 1, 2, 2, 0, the last of role 1, summary 1:

        1 1 0 0 0
        1 1 0 0 0
        1 1 1 1 0
        1 1 1 1 0
        1 1 1 1 1
    """

    summary: int
    group: Literal["frame", "segment"] = "frame"

    roles = ("summary",)

    def __post_init__(self) -> None:
        require(self.summary >= 0, "summary", self.summary, "a role, a whole number from 0")

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        blocks = BlockCausal(self.group).allowed(q, k)
        return (q.role == self.summary) | (blocks & (k.role != self.summary))


@member("masks", "frame_causal")
@dataclasses.dataclass(frozen=True)
class FrameCausal(Mask):
    """A query sees its own frame and the earlier ones whole, wherever they are stored: k.frame <= q.frame.

    ViD-GPT (arXiv 2406.10981), STream3R (arXiv 2508.10893). Unlike `block_causal` it does not read the order in which
    tokens are stored: those in no frame (0) see one another both ways and are seen by all. Five tokens in frames 0, 0,
    1, 2, 1:

        1 1 0 0 0
        1 1 0 0 0
        1 1 1 0 1
        1 1 1 1 1
        1 1 1 0 1
    """

    group: Literal["frame", "segment"] = "frame"

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return getattr(k, self.group) <= getattr(q, self.group)


@member("masks", "scale_causal")
@dataclasses.dataclass(frozen=True)
class ScaleCausal(Mask):
    """A query sees its own scale and the coarser ones, wherever they are stored: k.scale <= q.scale.

    After HieraTok (arXiv 2509.23736). Of tokens stored from coarse to fine, what a scale makes of its input does not
    change if finer ones are left out. Five tokens in scales 0, 1, 1, 2, 2:

        1 0 0 0 0
        1 1 1 0 0
        1 1 1 0 0
        1 1 1 1 1
        1 1 1 1 1
    """

    group: Literal["scale", "segment", "frame"] = "scale"

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return getattr(k, self.group) <= getattr(q, self.group)


@member("masks", "concentric")
@dataclasses.dataclass(frozen=True)
class Concentric(Mask):
    """In its own frame a query sees the rings up to its own, k.scale <= q.scale; all else is causal.

    Concentric causal attention (Xing et al. 2024, arXiv 2410.15926): the rings of an image are counted inwards from 0
    at its border (`tokens.rings`), and each sees itself and those around it. Six tokens in frames 0, 1, 1, 1, 1, 0, of
    scales 0, 0, 1, 1, 0, 0:

        1 0 0 0 0 0
        1 1 0 0 1 0
        1 1 1 1 1 0
        1 1 1 1 1 0
        1 1 0 0 1 0
        1 1 1 1 1 1
    """

    group: Literal["frame", "segment"] = "frame"

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        same = _same(q, k, self.group)
        return (same & (k.scale <= q.scale)) | (~same & (k.index <= q.index))
