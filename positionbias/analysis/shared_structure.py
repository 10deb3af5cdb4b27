"""Shared structure: whether an activation from one condition means the same to the model in another."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Subject, at_layer, last_outputs, last_rows, sites
from positionbias.arrays import Float, Int, Key
from positionbias.models import edits
from positionbias.spec import ConfigError, member, require
from positionbias.tasks.base import Batch, Condition, find_condition


@member("analyses", "shared_structure")
@dataclasses.dataclass(frozen=True)
class SharedStructure(Analysis):
    """Share of items that say another item's answer once they have its stream in the row that answers, by layer.

    Interchange interventions (Geiger et al. 2021, arXiv 2106.02997) between tasks: the source is an item of the
    condition `other` of the run's task (by default the last but for that which is asked), the base one of that which is
    asked, and the stream behind a layer, in the row of the last answer, goes from one to the other. "across" counts
    bases that then say what the source says, among the pairs that say different things; "within" is the same with
    sources of the base's own condition, and so what `across` would be if all structure were shared; "elsewhere" has the
    source's stream of a random row instead, and so what any activation does. Behind the last layer the first two are 1.
    "pairs" is the share of pairs that count; the others are 0 where none does.
    """

    other: str = ""

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("across", "within", "elsewhere"), ("layer",)),
        "pairs": (),
    }
    shown = "across"
    alike = (STREAM,)
    draws = True

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def check(self, subject: Subject) -> None:
        task = subject.run.task
        subject.require_tokens("a task whose answers are tokens, as these can be equal", said=True)
        if len(task.conditions()) < 2:
            raise ConfigError(
                "--analyses: shared_structure goes from one condition to another, and task ="
                f" {subject.run.config.task} has one; allowed: a task with two or more."
            )
        allowed = f"another condition than {subject.condition.name}, which is asked"
        require(self._other(subject) != subject.condition, "other", self.other, allowed)

    def _other(self, subject: Subject) -> Condition:
        if self.other:
            return find_condition(subject.run.task, self.other, "other")
        return [one for one in subject.run.task.conditions() if one != subject.condition][-1]

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        others = dataclasses.replace(subject, condition=self._other(subject))
        names, length = sites(layers, STREAM), others.run.task.length(others.condition)

        def one(base: Batch, key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
            rows, each = last_rows(subject, base), jnp.arange(len(base.query))
            far, near, picked = jax.random.split(key, 3)

            def said(edit: dict[str, edits.Edit]) -> jax.Array:
                return _said(subject, subject.apply(base, (), edit)[0], base)

            own = said({})

            def follow(streams: Float[jax.Array, "L B D"], told: Int[jax.Array, "B"]) -> Float[jax.Array, "L"]:
                def at(layer: jax.Array) -> jax.Array:
                    def exchanged(i: int, rows: jax.Array) -> edits.Edit:
                        return edits.replace(streams[i][:, None], rows=rows)

                    return jnp.mean((told != own) & (said(at_layer(names, layer, exchanged, rows[:, None])) == told))

                return jax.lax.map(at, jnp.arange(len(layers)))

            found = {}
            for name, source, drawn in (("across", others, far), ("within", subject, near)):
                batch = source.batch(drawn, len(each))
                outputs, streams = source.apply(batch, names)
                answering = last_rows(source, batch)
                told = _said(source, outputs, batch)
                held = jnp.stack([streams[site] for site in names])
                found[name] = follow(held[:, each, answering], told)
                found[f"{name}_pairs"] = jnp.mean(told != own)
                if source is others:
                    random = jax.random.randint(picked, each.shape, 0, length - 1)
                    random += random >= answering  # any row but the one that answers
                    found["elsewhere"] = follow(held[:, each, random], told)
            return found

        drawn, own = jax.random.split(key)
        found = subject.averaged(subject.batch(drawn), one, own)
        across, within = (jnp.where(x == 0, 1.0, x) for x in (found["across_pairs"], found["within_pairs"]))
        return {
            "across": found["across"] / across,
            "within": found["within"] / within,
            "elsewhere": found["elsewhere"] / across,
            "pairs": found["across_pairs"],
        }


def _said(subject: Subject, outputs: Float[jax.Array, "B T V"], batch: Batch) -> Int[jax.Array, "B"]:
    """What the last answers say."""
    return subject.run.experiment.objective.said(last_outputs(subject, outputs, batch))
