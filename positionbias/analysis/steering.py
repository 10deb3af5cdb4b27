"""Steering: what a difference of means, added to the stream, makes a model say."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.alignment import MOST, answers, margins
from positionbias.analysis.base import STREAM, Axes, Labels, Subject, at_layer, sites, stacked
from positionbias.analysis.variables import OfVariable, pairs
from positionbias.arrays import Bool, Float, Key
from positionbias.models import edits
from positionbias.spec import member, require
from positionbias.tasks.base import Batch

STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)


@member("analyses", "steering")
@dataclasses.dataclass(frozen=True)
class Steering(OfVariable):
    """Answers that change as told when a difference of means is added to the stream, by layer and strength.

    Marks and Tegmark 2023 (arXiv 2310.06824, difference in means) and Turner et al. 2023 (arXiv 2308.10248, activation
    addition). The mean stream behind a layer for every value of the `variable`, which is one of those of `das`, is that
    of `examples` items, in the rows where it stands. Other items then get strength times (mean with another value -
    mean with their own) in these rows, and nothing where no example had one of the two.

    "turned" is the share that then answers as is right with the other value, among those whose answer has to change,
    and "margin" the mean logit of that answer minus that of their own, in nats. "random_turned" and "random_margin"
    are of directions at random, of the same length, one for every item. Strength 0 is the model left alone, -1 the
    wrong way.
    """

    variable: str = "answer"
    examples: int = 1024

    axes: ClassVar[Axes] = dict.fromkeys(("turned", "margin", "random_turned", "random_margin"), ("layer", "strength"))
    shown = "turned"
    labels: ClassVar[Labels] = {"strength": tuple(f"{strength:g}" for strength in STRENGTHS)}
    draws = True

    def __post_init__(self) -> None:
        require(1 <= self.examples <= MOST, "examples", self.examples, f"a whole number from 1 to {MOST}")

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        shown, items, *own = jax.random.split(key, 4)
        names = sites(layers, STREAM)
        means, seen = self._means(subject, names, shown, own[0])  # [L, C, D], [C]

        def one(batch: Batch, key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
            drawn, picked = jax.random.split(key)
            found = pairs(subject, names, self.variable, drawn, len(batch.query))
            differ = (found.told != found.was).astype(jnp.float32)
            each, length = jnp.arange(len(differ)), subject.run.task.length(subject.condition)

            def effects(layer: jax.Array, shift: Float[jax.Array, "B n D"]) -> dict[str, jax.Array]:
                added = jnp.zeros((len(each), length, shift.shape[-1])).at[each[:, None], found.rows].add(shift)

                def at(strength: jax.Array) -> dict[str, jax.Array]:
                    edit = at_layer(names, layer, lambda _, rows: edits.add(strength * added, rows=rows), found.rows)
                    said = answers(subject, found, edit)
                    right = subject.run.experiment.objective.right(said, found.told)
                    margin = jnp.mean(differ * margins(found, said))
                    return {"turned": jnp.mean(differ * right), "margin": margin}

                return jax.lax.map(at, jnp.array(STRENGTHS))

            def of(layer: jax.Array) -> dict[str, jax.Array]:
                known = (seen[found.after] & seen[found.before])[..., None]
                shift = jnp.where(known, means[layer][found.after] - means[layer][found.before], 0.0)
                random = jax.random.normal(jax.random.fold_in(picked, layer), shift.shape)
                size = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (shift, random))
                random = random * next(size) / next(size)
                control = {f"random_{name}": x for name, x in effects(layer, random).items()}
                return effects(layer, shift) | control

            return jax.lax.map(of, jnp.arange(len(names))) | {"pairs": jnp.mean(differ)}

        found = subject.averaged(subject.batch(items), one, own[1])  # of the items only the number counts
        share = found.pop("pairs")
        return {name: x / jnp.where(share == 0, 1.0, share) for name, x in found.items()}

    def _means(
        self, subject: Subject, names: list[str], items: Key[jax.Array, ""], key: Key[jax.Array, ""]
    ) -> tuple[Float[jax.Array, "L C D"], Bool[jax.Array, "C"]]:
        """The mean stream of every value, and which values there were."""
        values = subject.run.task.output.size if self.variable == "answer" else 2

        def one(batch: Batch, key: Key[jax.Array, ""]) -> tuple[jax.Array, jax.Array]:
            found = pairs(subject, names, self.variable, key, len(batch.query))
            each = jnp.arange(len(batch.query))[:, None]
            there = stacked(subject, names, found.base)[:, each, found.rows]  # [L, B, n, D]
            is_value = jax.nn.one_hot(found.before, values)
            total = jnp.einsum("bnc,lbnd->lcd", is_value, there, precision="highest")
            return total / len(each), jnp.sum(is_value, axis=(0, 1)) / len(each)

        total, share = subject.averaged(subject.batch(items, self.examples), one, key)
        return total / jnp.where(share == 0, 1.0, share)[:, None], share > 0
