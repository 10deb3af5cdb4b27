"""Confounders: inputs that a model answered by before it was trained, or half-way, and does not any more."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, last_rows
from positionbias.arrays import Bool, Float, Key, Tree
from positionbias.evaluation.loading import LoadedRun, load
from positionbias.models import edits
from positionbias.spec import ConfigError, canonical, member, require
from positionbias.tasks.base import Batch

CAP = 0.5  # what is above the middle of an item's scores is no confounder, however few there are


def scaled(x: Float[jax.Array, "B T"], of: Bool[jax.Array, "B T"]) -> Float[jax.Array, "B T"]:
    """From 0 to 1 over the places `of` each item, 0 at all others; 0 everywhere where they are all the same."""
    low = jnp.min(jnp.where(of, x, jnp.inf), axis=1, keepdims=True)
    high = jnp.max(jnp.where(of, x, -jnp.inf), axis=1, keepdims=True)
    spread = jnp.where(high > low, high - low, 1.0)
    return jnp.where(of & (high > low), (x - low) / spread, 0.0)


def auc(
    scores: Float[jax.Array, "B T"], one: Bool[jax.Array, "B T"], other: Bool[jax.Array, "B T"]
) -> Float[jax.Array, "B"]:
    """The probability that a place of `one` has a higher score than one of `other`, ties by half; 0.5 without pairs."""
    mine, theirs = scores[:, :, None], scores[:, None, :]
    won = (mine > theirs) + 0.5 * (mine == theirs)
    pairs = one[:, :, None] & other[:, None, :]
    count = jnp.sum(pairs, axis=(1, 2))
    return jnp.where(count > 0, jnp.sum(won * pairs, axis=(1, 2)) / jnp.maximum(count, 1), 0.5)


def lowest(scores: Float[jax.Array, "B T"], of: Bool[jax.Array, "B T"], share: float) -> Bool[jax.Array, "B T"]:
    """The `share` of the places `of` each item with the lowest scores, one at least, of those up to 0.5."""
    rank = jnp.argsort(jnp.argsort(jnp.where(of, scores, jnp.inf), axis=1, stable=True), axis=1)
    many = jnp.maximum(jnp.floor(share * jnp.sum(of, axis=1, keepdims=True)), 1)
    return of & (rank < many) & (scores <= CAP)


def sensitivity(subject: Subject, batch: Batch) -> tuple[Float[jax.Array, "B T"], Bool[jax.Array, "B"]]:
    """|d loss / d embedding| of the last answer by input, and whether that is right."""

    def loss(shift: Float[jax.Array, "B T D"]) -> tuple[jax.Array, jax.Array]:
        outputs, _ = subject.apply(batch, (), {"embedding": edits.add(shift)})
        told = subject.answers(outputs, batch)
        return -jnp.sum(told["log_probability"][:, -1]), told["accuracy"][:, -1] > 0

    shape = (*batch.weights.shape, subject.run.config.model.width)
    slopes, right = jax.grad(loss, has_aux=True)(jnp.zeros(shape))
    return jnp.sqrt(jnp.sum(jnp.square(slopes), axis=-1)), right


def scores(teacher: Subject, student: Subject, batch: Batch) -> dict[str, jax.Array]:
    """By item and input, [B, T], scaled "teacher", "student" and "difference", and "of" which inputs these are.

    Those are inputs that do not answer, are valid, and that either model is sensitive to at all. "counted", [B], are
    items that the teacher gets right and the student wrong.
    """
    (high, right), (low, passed) = (sensitivity(model, batch) for model in (teacher, student))
    index = jnp.arange(high.shape[1])
    of = (index != last_rows(teacher, batch)[:, None]) & (batch.tokens.valid > 0) & ((high > 0) | (low > 0))
    found = {"teacher": scaled(high, of), "student": scaled(low, of)}
    found["difference"] = scaled(found["teacher"] - found["student"], of)
    return found | {"of": of, "counted": right & ~passed}


@member("analyses", "confounders")
@dataclasses.dataclass(frozen=True)
class Confounders(Analysis):
    """Inputs that the trained model's answer depends on least, compared with a model that answers wrong (LeaF).

    Guo et al. 2025 (arXiv 2506.07851). Of the loss of an item's last answer the gradient with respect to each input's
    embedding has a norm, scaled to 0 to 1 over the item's inputs; that of the "teacher" less that of the "student",
    scaled again, is the "difference"; the `share` of inputs where it is lowest, no higher than 0.5, are "confounders".
    All are means by position over the items that the teacher gets right and the student wrong, "counted" of all.

    The paper's teacher is a larger model. Here it is the replica at the checkpoint that is asked, and the student the
    same replica at its checkpoint of the step `student`, or with 0 as it was drawn: of one kind, initialisation and
    world, so that the difference is what training between the two made of it. Against a student as drawn it is low
    where an architecture looks by itself; what training goes through, as a shortcut that it drops again, shows against
    an earlier checkpoint only. With 0 a model as drawn is its own student, and all its numbers are 0.

    "auc" is the probability that an input that is evidence has a higher difference than one that is not, "auc_teacher"
    and "auc_student" that of the sensitivity alone; 0.5 is chance. "mended" is the part of those items that the student
    gets right with the embeddings of confounders set to 0, "mended_random" with as many other inputs at random.
    """

    student: int = 0
    share: float = 0.1

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("teacher", "student", "difference", "confounders"), ("position",)),
        **dict.fromkeys(("auc", "auc_teacher", "auc_student", "mended", "mended_random", "counted"), ()),
    }
    shown = "confounders"
    any_rows = True

    def __post_init__(self) -> None:
        require(self.student >= 0, "student", self.student, "a step with a checkpoint, or 0 for models as drawn")
        require(0 < self.share <= 0.5, "share", self.share, "a number above 0, up to 0.5")

    def reads(self) -> tuple[str, ...]:
        return ()

    def given(self, run: LoadedRun) -> Tree:
        if self.student and self.student >= run.step:
            raise ConfigError(
                f"--analyses: {canonical(self)} has student = {self.student}, which is not before the step that is"
                f" asked, {run.step}; allowed: an earlier checkpoint, or 0 for models as drawn."
            )
        if not self.student:
            return run.untrained()
        try:
            return load(run.workdir, self.student, run.replica).weights
        except ConfigError as error:
            raise ConfigError(f"--analyses: {canonical(self)} reads a checkpoint: {error}") from None

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        student = dataclasses.replace(subject, run=dataclasses.replace(subject.run, weights=subject.given))

        def one(batch: Batch, keys: Key[jax.Array, "B"]) -> dict[str, jax.Array]:
            found = scores(subject, student, batch)
            of, counted = found["of"], found["counted"].astype(jnp.float32)
            chosen = lowest(found["difference"], of, self.share)
            draw = jax.vmap(lambda key: jax.random.uniform(key, of.shape[1:]))(keys)
            many = jnp.sum(chosen, axis=1, keepdims=True)
            free = of & ~chosen
            order = jnp.argsort(jnp.argsort(jnp.where(free, draw, jnp.inf), axis=1), axis=1)
            others = free & (order < many)

            def right(rows: Bool[jax.Array, "B T"]) -> Bool[jax.Array, "B"]:
                outputs, _ = student.apply(batch, (), {"embedding": edits.zero(rows=rows)})
                return student.answers(outputs, batch)["accuracy"][:, -1] > 0

            evidence = _evidence(batch, of.shape[1]) & of
            by_item = {"mended": right(chosen), "mended_random": right(others)}
            for name, of_what in (("auc", "difference"), ("auc_teacher", "teacher"), ("auc_student", "student")):
                by_item[name] = auc(found[of_what], evidence, of & ~evidence)
            by_input = {name: found[name] for name in ("teacher", "student", "difference")} | {"confounders": chosen}
            told = {name: jnp.mean(x * counted[:, None], axis=0) for name, x in by_input.items()}
            told |= {name: jnp.mean(x * counted) for name, x in by_item.items()}
            return told | {"counted": jnp.mean(counted)}

        asked, drawn = jax.random.split(key)
        keys = jax.random.split(drawn, subject.items)
        found = subject.averaged(subject.batch(asked), one, beside=keys)
        share = jnp.where(found["counted"] > 0, found["counted"], 1.0)
        return {name: x if name == "counted" else x / share for name, x in found.items()}


def _evidence(batch: Batch, length: int) -> Bool[jax.Array, "B T"]:
    """The evidence of the last answer."""
    return jnp.any(batch.evidence[:, -1, :, None] == jnp.arange(length), axis=1)
