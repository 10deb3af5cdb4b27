"""Gradient influence: how much a small change of each input position moves the row of the answer, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Subject, last_rows, recorded
from positionbias.arrays import Key
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "gradient_influence")
@dataclasses.dataclass(frozen=True)
class GradientInfluence(Analysis):
    """E |d (w . h_l) / d x_j|^2 over items and Gaussian w, as shares of all input positions j, after every layer l.

    x is the embedding and h_l the stream after layer l in the row of the last answer: with the last layer, what
    `evaluation` calls influence. Counted by position ("influence") and by distance from that row ("distance", the
    farthest ones last), where an answer may stand in several places. 0 everywhere where no input moves the row. Needs
    no attention, so any operator will do.
    """

    axes: ClassVar[Axes] = {"influence": ("layer", "position"), "distance": ("layer", "distance")}
    shown = "influence"
    alike = (STREAM,)
    any_rows = True
    draws = True

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        length, width = subject.run.task.length(subject.condition), subject.run.config.model.width

        def one(batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
            rows = last_rows(subject, batch)

            def projected(shift: jax.Array) -> jax.Array:
                streams = recorded(subject, layers, STREAM, batch, {"embedding": edits.add(shift)})
                at = rows - (length - streams.shape[2])  # a decoder has the last rows only
                hidden = jnp.take_along_axis(streams, at[None, :, None, None], axis=2)[:, :, 0]
                return jnp.sum(hidden * jax.random.normal(key, hidden.shape), axis=(1, 2))

            slopes = jax.jacrev(projected)(jnp.zeros((len(rows), length, width)))  # [L, B, T, D]
            sizes = jnp.sum(jnp.square(slopes), axis=-1)
            far = rows[:, None] - jnp.arange(length)
            counted = jnp.where(far[..., None] == jnp.arange(length), 1.0, 0.0)  # [B, T, distance]
            by_distance = jnp.einsum("lbt,btd->ld", sizes, counted, precision="highest")
            return {"influence": jnp.mean(sizes, axis=1), "distance": by_distance / len(rows)}

        drawn, own = jax.random.split(key)
        found = subject.averaged(subject.batch(drawn), one, own)
        total = {name: jnp.sum(x, axis=-1, keepdims=True) for name, x in found.items()}
        return {name: x / jnp.where(total[name] > 0, total[name], 1.0) for name, x in found.items()}
