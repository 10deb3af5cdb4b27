"""Softmax attention."""

from __future__ import annotations

import dataclasses

import jax

from positionbias.arrays import Mapped
from positionbias.kernels.softmax_attention import xla
from positionbias.operators.by_kernel import ByKernel
from positionbias.spec import member


def masked_softmax(found: jax.Array, allowed: Mapped) -> jax.Array:
    """Softmax over the allowed entries of the last axis; a row with none allowed is zero, and so is its gradient."""
    return xla.masked_softmax(found, allowed)[0]


@member("operators", "softmax")
@dataclasses.dataclass(frozen=True)
class Softmax(ByKernel):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1); `scaled=False` leaves out 1/sqrt(H).

    "Attention Is All You Need", arXiv 1706.03762.

    `impl` names the driver of the kernel that computes it (`python -m positionbias.kernels.explain`), None the first
    that can. Scores and pattern exist in none of them: where a site reads one of the two, or a position scheme has
    products of its own, the formula is computed as it stands.
    """

    known_as = ("attention", "sdpa")

    scaled: bool = True
    impl: str | None = None

    def weights(self, scores: jax.Array, allowed: Mapped) -> jax.Array:
        return masked_softmax(scores, allowed)
