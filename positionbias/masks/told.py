"""Masks that read what models and objectives tell of tokens: context, pass, mode."""

from __future__ import annotations

import dataclasses

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask, one_share
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("masks", "context_bidirectional")
@dataclasses.dataclass(frozen=True)
class ContextBidirectional(Mask):
    """Tokens of the context see all of it; the rest is causal, and so sees all of the context.

    FocuSFT (arXiv 2605.09932) and prefix language models. The context is what the task says an encoder would read, and
    so may differ in length between conditions, where `prefix(length)` has one. In an encoder-decoder the encoder does
    this. Four tokens, the first two of them the context:

        1 1 0 0
        1 1 0 0
        1 1 1 0
        1 1 1 1
    """

    known_as = ("prefix_lm",)

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.index <= q.index) | ((q.context > 0) & (k.context > 0))


@member("masks", "depth_causal")
@dataclasses.dataclass(frozen=True)
class DepthCausal(Mask):
    """Causal in order and in pass: a query sees k.index <= q.index of its own pass and of earlier ones.

    The duo-causal attention of Think-at-Hard (Fu et al. 2025, arXiv 2511.08577), a looped model that reads some of its
    tokens again. With one pass it is `causal`; in which order passes are laid out does not matter. Four tokens, stored
    at 0, 1, 0, 1, of passes 0, 0, 1, 1:

        1 0 0 0
        1 1 0 0
        1 0 1 0
        1 1 1 1
    """

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (k.index <= q.index) & (k.depth <= q.depth)


@member("masks", "switch")
@dataclasses.dataclass(frozen=True)
class Switch(Mask):
    """The mask `first` where a query's mode is 0, else `second`; training reads a `share` of batches under `second`.

    One model for two directions, as those that make text embedders of causal models train it: ULLME (arXiv 2408.03402),
    MoCa (arXiv 2506.23115). Evaluation reads under `first`. Four tokens of modes 0, 0, 1, 1, first `causal`, second
    `bidirectional`:

        1 0 0 0
        1 1 0 0
        1 1 1 1
        1 1 1 1
    """

    first: Mask
    second: Mask
    share: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "share", self.share, "a number from 0 to 1")
        one_share((self, self.first, self.second))

    @property
    def second_share(self) -> float | None:
        return self.share

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        first, second = self.first.allowed(q, k), self.second.allowed(q, k)
        return ((q.mode == 0) & first) | ((q.mode != 0) & second)

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return Switch(self.first.bind(q, k), self.second.bind(q, k), self.share)
