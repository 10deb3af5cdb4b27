"""Raw scores as weights: attention without the softmax."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Mapped
from positionbias.operators.base import ScoreOperator
from positionbias.spec import member


@member("operators", "linear_scores")
@dataclasses.dataclass(frozen=True)
class LinearScores(ScoreOperator):
    """Each value is weighted by its raw score, masked entries by zero; nothing is normalised.

    The one-layer model of Huang et al. 2025 on out-of-context reasoning (arXiv 2506.10887): X' X W_KQ x_T, without
    the scale 1/sqrt(H) unless `scaled`. It is not the feature-map form of linear attention, which normalises.
    """

    scaled: bool = False

    def weights(self, scores: jax.Array, allowed: Mapped) -> jax.Array:
        return jnp.where(allowed, scores, 0.0)
