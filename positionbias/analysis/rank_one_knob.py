"""Rank-one knob: one direction of the stream that turns a model from one condition to another."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.alignment import Taught, rotated, subspaces
from positionbias.analysis.base import (
    STREAM,
    Axes,
    Labels,
    Subject,
    at_layer,
    last_outputs,
    last_rows,
    right_answer,
    sites,
    stacked,
)
from positionbias.analysis.variables import either, second_condition
from positionbias.arrays import Float, Key
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch

STRENGTHS = (0.5, 1.0, 2.0, 4.0)


@member("analyses", "rank_one_knob")
@dataclasses.dataclass(frozen=True)
class RankOneKnob(Taught):
    """Share of items answered as the condition asks that one number along one direction is set to, by layer.

    Minder et al. 2024, "Controllable Context Sensitivity and the Knob Behind It" (arXiv 2411.07404). A unit vector u is
    found as by `das(variable='condition', dimensions=1)`: the asked condition and the first other with its items are
    the knob's two sides. The stream x of the row that answers then becomes x - (u . x) u + c u, with no source: c is
    the mean of u . x in the side that is turned to, times the strength away from the middle of both means. Items are of
    either side at random, and so is what they are turned to.

    "turned" is the share of answers that are right in the side turned to; "untold" the same where nothing tells the
    side, as in every row where the two sides' inputs differ the embedding is the mean of both; "random" that of
    "turned" for a random u. "whole" has the whole stream of the same item in that side, so what the row of this layer
    has to say of it at all, and "nothing" and "untold_nothing" no knob: half of the accuracy, if answers differ.
    """

    updates: int = 200
    batch: int = 32
    rate: float = 1e-2

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("turned", "untold", "random"), ("layer", "strength")),
        "whole": ("layer",),
        **dict.fromkeys(("nothing", "untold_nothing"), ()),
    }
    shown = "turned"
    labels: ClassVar[Labels] = {"strength": tuple(f"{strength:g}" for strength in STRENGTHS)}
    draws = True
    variable = "condition"

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        learned, picked, items, measured, own = jax.random.split(key, 5)
        names, other = sites(layers, STREAM), second_condition(subject)
        found = subspaces(subject, names, self.variable, 1, self._training(), learned)[:, 0, 0]  # [L, D]
        random = jnp.stack([rotated(one, 1, found.shape[-1])[0] for one in jax.random.split(picked, len(names))])
        vectors = jnp.stack([found, random])  # [2, L, D]

        def along(batch: Batch, key: Key[jax.Array, ""]) -> Float[jax.Array, "side 2 L"]:
            means = []
            for one in (subject, other):
                drawn = one.batch(key, len(batch.query))
                held = stacked(one, names, drawn)[:, jnp.arange(len(drawn.query)), last_rows(one, drawn)]
                means.append(jnp.einsum("kld,ld->kl", vectors, jnp.mean(held, axis=1), precision="highest"))
            return jnp.stack(means)

        batch = subject.batch(items)  # of which only the number counts
        means = subject.averaged(batch, along, measured)
        middle = jnp.mean(means, axis=0)

        def one(batch: Batch, key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
            drawn, bits = jax.random.split(key)
            count = len(batch.query)
            both = [side.batch(drawn, count) for side in (subject, other)]
            bit, wanted = jax.random.bernoulli(bits, shape=(2, count))
            base = either(bit, *both)
            told = jnp.where(wanted, right_answer(both[1]), right_answer(both[0]))
            rows = last_rows(subject, base)
            embedded = [
                side.apply(x, ["embedding"])[1]["embedding"] for side, x in zip((subject, other), both, strict=True)
            ]
            untold = {"embedding": edits.replace((embedded[0] + embedded[1]) / 2)}

            def right(edit: dict[str, edits.Edit]) -> jax.Array:
                said = last_outputs(subject, subject.apply(base, (), edit)[0], base)
                return jnp.mean(subject.run.experiment.objective.right(said, told).astype(jnp.float32))

            def turned(layer: jax.Array, which: int, strength: jax.Array) -> dict[str, edits.Edit]:
                u, center = vectors[which, layer], middle[which, layer]
                c = center + strength * (means[wanted.astype(int), which, layer] - center)
                value = c[:, None, None] * u

                def edit(_: int, rows: jax.Array) -> edits.Edit:
                    return edits.interchange(value, u[None], rows=rows)

                return at_layer(names, layer, edit, rows[:, None])

            def of(layer: jax.Array) -> dict[str, jax.Array]:
                def at(strength: jax.Array) -> dict[str, jax.Array]:
                    knob = turned(layer, 0, strength)
                    shares = {"turned": right(knob), "untold": right(untold | knob)}
                    return shares | {"random": right(turned(layer, 1, strength))}

                return jax.lax.map(at, jnp.array(STRENGTHS))

            aim = either(wanted, *both)
            held = stacked(subject, names, aim)[:, jnp.arange(count), last_rows(subject, aim)]

            def whole(layer: jax.Array) -> jax.Array:
                return right(
                    at_layer(names, layer, lambda i, at: edits.replace(held[i][:, None], rows=at), rows[:, None])
                )

            index = jnp.arange(len(names))
            shares = jax.lax.map(of, index) | {"whole": jax.lax.map(whole, index)}
            return shares | {"nothing": right({}), "untold_nothing": right(untold)}

        return subject.averaged(batch, one, own)
