"""Many responses to one prompt, side by side."""

from __future__ import annotations

import dataclasses

from positionbias.masks.base import Mask
from positionbias.masks.groups import SharedPrompt
from positionbias.operators.own_mask import OwnMask
from positionbias.spec import member


@member("operators", "shared_prompt")
@dataclasses.dataclass(frozen=True)
class SharedPromptAttention(OwnMask):
    """DualKV's attention: causal softmax within the prompt (segment 0) and each response's own segment.

    Gai et al. 2026 (arXiv 2605.15422); the mask is `shared_prompt`, and the layer's holds beside it. Where positions of
    each response go on from the prompt's, outputs and gradients are those of as many runs, each with its own copy of
    the prompt. `impl` as in `softmax`.
    """

    known_as = ("dualkv",)

    scaled: bool = True
    impl: str | None = None

    reads_tokens = frozenset({"segment"})

    @property
    def own(self) -> Mask:
        return SharedPrompt()
