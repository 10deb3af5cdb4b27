"""Attention sinks: how much of their attention rows spend on one key that most of them do not need."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, evenly, patterns
from positionbias.arrays import Key
from positionbias.spec import member, require
from positionbias.tasks.base import Batch


@member("analyses", "sink_mass")
@dataclasses.dataclass(frozen=True)
class SinkMass(Analysis):
    """Attention to the key at `column`, by head: its mean over rows, and the share of heads where that is large.

    The mass of a head is the mean of A[i, column] over rows i >= column + `after`, as the first rows have few others to
    look at; "heads" counts those above `threshold` (Gu et al. 2024, "When Attention Sink Emerges", arXiv 2410.10781,
    has 0.3). "even" is the mass of rows that attend evenly to all that has any weight: a sink is what is far above.
    """

    column: int = 0
    after: int = 1
    threshold: float = 0.3

    axes: ClassVar[Axes] = {"mass": ("layer", "head"), "even": ("layer", "head"), "heads": ("layer",)}
    shown = "mass"

    def __post_init__(self) -> None:
        require(0 <= self.column <= 65536, "column", self.column, "a whole number from 0 to 65536")
        require(0 <= self.after <= 65536, "after", self.after, "a whole number from 0 to 65536")
        require(0 <= self.threshold <= 1, "threshold", self.threshold, "a number from 0 to 1")

    def check(self, subject: Subject) -> None:
        last = subject.run.task.length(subject.condition) - 1
        require(self.column + self.after <= last, "column + after", self.column + self.after, f"0 to {last}")

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> tuple[jax.Array, jax.Array]:
            rows = patterns(subject, layers, batch)[..., self.column + self.after :, :]
            mass, even = (jnp.mean(x[..., self.column], axis=(1, 3)) for x in (rows, evenly(rows)))
            return mass, even

        mass, even = subject.averaged(subject.batch(key), one)
        return {"mass": mass, "even": even, "heads": jnp.mean(mass > self.threshold, axis=-1)}
