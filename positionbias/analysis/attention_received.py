"""Attention received: which keys are attended to, whoever asks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, evenly, patterns
from positionbias.arrays import Key
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "attention_received")
@dataclasses.dataclass(frozen=True)
class AttentionReceived(Analysis):
    """Attention that each key receives from all rows, the mean over heads: `received` of the kernel's statistics.

    Its mean over keys is 1 where weights sum to 1. "even" is what keys would receive from rows that attend evenly to
    all that they see: under a causal mask the first receives about log T, the last 1 / T, without any preference.
    """

    axes: ClassVar[Axes] = {"received": ("layer", "position"), "even": ("layer", "position")}
    shown = "received"

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> dict[str, jax.Array]:
            found = patterns(subject, layers, batch)
            each = {"received": found, "even": evenly(found)}
            return {name: jnp.mean(jnp.sum(x, axis=-2), axis=(1, 2)) for name, x in each.items()}

        return subject.averaged(subject.batch(key), one)
