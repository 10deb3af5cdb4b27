"""Latent steps: which of the rows behind the context the answers go through, step by step."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Subject, at_layer, sites
from positionbias.analysis.segments import check_items, evidence_rows
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.models import edits
from positionbias.spec import ConfigError, canonical, member
from positionbias.tasks.base import Batch
from positionbias.tokens import of_both, own_and_shared

EMBEDDING = "embedding"


@member("analyses", "latent_steps")
@dataclasses.dataclass(frozen=True)
class LatentSteps(Analysis):
    """What answers lose where one step is another item's: interventions on scratch tokens, one after the other.

    Steps are the rows behind the context: scratch tokens, answers that later rows read, the path of a question; latent
    vectors in the paper (Chang et al. 2026, arXiv 2606.01243), whose causal probe asks which of them later ones hang
    on. A step is exchanged by putting the next item's embedding and stream, behind every layer, into its row: whatever
    reads it then reads of the next item, and what is said there is what that one says.

    By exchanged step and by the step that answers, means over the items that answer there: "effect" is what the
    log-probability of the right answer loses, nats, "changed" the share of answers that differ, and "token" that share
    where the input alone is the next item's, so that the rest of the row is worked out anew from the own context: what
    a step carries beyond its token is the difference. "by_layer" is, by layer and step, the share of the answers of
    other steps that differ where the stream behind that layer alone is exchanged. "context", the control, is "changed"
    by a row of the context at random that no answer needs, 0 where all are needed. "answers" is the share of items that
    answer at a step; where none does, all is 0.
    """

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("effect", "changed", "token"), ("step", "to_step")),
        "by_layer": ("layer", "step"),
        **dict.fromkeys(("context", "answers"), ("to_step",)),
    }
    shown = "changed"
    whole = True

    def reads(self) -> tuple[str, ...]:
        return (STREAM, EMBEDDING)

    def check(self, subject: Subject) -> None:
        subject.require_tokens("a task that answers by tokens", said=True)
        check_items(subject)
        if _steps(subject) < 2:
            raise ConfigError(
                f"--analyses: latent_steps exchanges the rows behind the context, of which the task"
                f" {canonical(subject.run.task)} has {_steps(subject)} in condition {subject.condition.name};"
                " allowed: from 2."
            )

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        names, many = [EMBEDDING, *sites(layers, STREAM)], _steps(subject)
        length = subject.run.task.length(subject.condition)
        steps = length - many + jnp.arange(many)
        drawn, picked = jax.random.split(key)
        batch = subject.batch(drawn)  # whose pieces may have a single item, so that items are paired as a whole
        own, _ = own_and_shared(batch.tokens)
        following = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), {"inputs": batch.inputs, "own": own})

        def one(piece: Batch, beside: dict[str, Any]) -> dict[str, jax.Array]:
            rows = subject.run.answer_rows(piece)
            tokens = of_both(beside["own"], own_and_shared(piece.tokens)[1])
            _, other = subject.apply(piece._replace(inputs=beside["inputs"], tokens=tokens), names)
            outputs, _ = subject.apply(piece)
            said, intact = subject.said(outputs, piece), subject.answers(outputs, piece)["log_probability"]
            at = (rows[..., None] == steps).astype(jnp.float32)  # [B, A, S]

            def told(edit: dict[str, edits.Edit]) -> tuple[Float[jax.Array, "S"], Float[jax.Array, "S"]]:
                """What answers lose, and how many differ, an item, by step."""
                outputs, _ = subject.apply(piece, (), edit)
                lost = intact - subject.answers(outputs, piece)["log_probability"]
                differ = (subject.said(outputs, piece) != said).astype(jnp.float32)
                return jnp.einsum("ba,bas->s", lost, at) / len(at), jnp.einsum("ba,bas->s", differ, at) / len(at)

            def exchanged(row: Int[jax.Array, "B"]) -> tuple[jax.Array, jax.Array]:
                return told({name: edits.replace(other[name], rows=row[:, None]) for name in names})

            def shared(step: Int[jax.Array, ""]) -> Int[jax.Array, "B"]:
                return jnp.broadcast_to(step, (len(at),))

            def behind(layer: jax.Array) -> jax.Array:
                def one_step(step: Int[jax.Array, ""]) -> jax.Array:
                    def one_layer(i: int, rows: jax.Array) -> edits.Edit:
                        return edits.replace(other[names[1 + i]], rows=rows)

                    change = at_layer(names[1:], layer, one_layer, shared(step)[:, None])
                    return jnp.sum(jnp.where(steps == step, 0, told(change)[1]))

                return jax.lax.map(one_step, steps)

            def as_input(step: Int[jax.Array, ""]) -> jax.Array:
                return told({EMBEDDING: edits.replace(other[EMBEDDING], rows=shared(step)[:, None])})[1]

            effect, changed = jax.lax.map(lambda step: exchanged(shared(step)), steps)
            return {
                "effect": effect,
                "changed": changed,
                "token": jax.lax.map(as_input, steps),
                "by_layer": jax.lax.map(behind, jnp.arange(len(layers))),
                "context": exchanged(beside["free"])[1],
                "answers": jnp.mean(jnp.sum(at, axis=1), axis=0),
            }

        free = _unneeded(batch, length - many, picked)
        found = subject.averaged(batch, one, beside={**following, "free": free})
        answers = found["answers"]
        each_there = jnp.where(answers > 0, answers, 1.0)
        elsewhere = jnp.sum(answers) - answers
        found["by_layer"] = found["by_layer"] / jnp.where(elsewhere > 0, elsewhere, 1.0)
        return found | {name: found[name] / each_there for name in ("effect", "changed", "token", "context")}


def _steps(subject: Subject) -> int:
    """How many rows stand behind the context."""
    task = subject.run.task
    return task.length(subject.condition) - task.context_length(subject.condition)


def _unneeded(batch: Batch, context: int, key: Key[jax.Array, ""]) -> Int[jax.Array, "B"]:
    """A row of the context, at random, that no answer needs and none answers in; -1 where there is none."""
    index = jnp.arange(batch.weights.shape[-1])
    taken: Bool[jax.Array, "B T"] = jnp.any(evidence_rows(batch), axis=1) | (index >= context)
    taken |= jnp.any(batch.query[..., None] == index, axis=1)
    random = jnp.argmax(jnp.where(taken, -1.0, jax.random.uniform(key, taken.shape)), axis=1)
    return jnp.where(jnp.all(taken, axis=1), -1, random)
