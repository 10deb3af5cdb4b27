"""How far back heads look, and among how many keys."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, evenly, patterns
from positionbias.arrays import Key
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "look_back")
@dataclasses.dataclass(frozen=True)
class LookBack(Analysis):
    """Mean look-back distance of each head, sum_s A[t, s] (t - s) over rows t, in positions; and its entropy in nats.

    The distance sorts heads into local and global ones (the Attention Illuminates paper calls local the lowest 30 %).
    Negative is ahead. "even" is the distance of rows that attend evenly to what they see.
    """

    axes: ClassVar[Axes] = {"distance": ("layer", "head"), "even": ("layer", "head"), "entropy": ("layer", "head")}
    shown = "distance"

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        index = jnp.arange(subject.run.task.length(subject.condition))
        back = (index[:, None] - index).astype(jnp.float32)

        def one(batch: Batch) -> dict[str, jax.Array]:
            found = patterns(subject, layers, batch)
            spread = -found * jnp.log(jnp.where(found > 0, found, 1.0))
            each = {"distance": found * back, "even": evenly(found) * back, "entropy": spread}
            return {name: jnp.mean(jnp.sum(x, axis=-1), axis=(1, 3)) for name, x in each.items()}

        return subject.averaged(subject.batch(key), one)
