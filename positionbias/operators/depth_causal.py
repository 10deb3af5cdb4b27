"""Attention that is causal in order and in pass."""

from __future__ import annotations

import dataclasses

from positionbias.masks.base import Mask
from positionbias.masks.told import DepthCausal
from positionbias.operators.own_mask import OwnMask
from positionbias.spec import member


@member("operators", "depth_causal")
@dataclasses.dataclass(frozen=True)
class DepthCausalAttention(OwnMask):
    """Duo-causal attention: softmax over what comes before in order and was read in the same pass or an earlier one.

    Think-at-Hard (Fu et al. 2025, arXiv 2511.08577); the mask is `depth_causal`, and the layer's holds beside it. With
    one pass it is causal softmax; a `looped` model tells passes. `impl` as in `softmax`.
    """

    known_as = ("duo_causal",)

    scaled: bool = True
    impl: str | None = None

    family = "softmax attention and variants"  # with one pass every key before is seen
    reads_tokens = frozenset({"depth"})
    patterns = frozenset({"noncausal_self", "causal_self", "noncausal_cross", "causal_cross"})

    @property
    def own(self) -> Mask:
        return DepthCausal()
