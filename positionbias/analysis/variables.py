"""Variables of a task that a model may hold, and pairs of items between which they are interchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Subject, last_rows, right_answer, stacked
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.spec import ConfigError, require, show, unknown
from positionbias.tasks.base import Batch, Condition
from positionbias.tokens import of_both, own_and_shared

CHECKED = 64  # items that are looked at before anything is computed


class Pairs(NamedTuple):
    """Items, what some of their rows get in place of what they hold, and what is then right; of their last answers."""

    base: Batch  # B items
    rows: Int[jax.Array, "B n"]  # that get something
    held: Float[jax.Array, "L B T D"]  # what these rows get; one row, if all get the same
    before: Int[jax.Array, "B n"]  # the variable's value in these rows
    after: Int[jax.Array, "B n"]  # and in what they get
    was: Int[jax.Array, "B"]  # the right answer of the base
    told: Int[jax.Array, "B"]  # the right answer with the value that comes with what they get
    mixed: Int[jax.Array, "B"]  # the right answer with a value that is drawn whatever they get: a shuffled label


class OfVariable(Analysis):
    """What analyses share that ask for a `variable`, one of `allowed`; the docstring of `das` says what these are."""

    variable: str
    alike = (STREAM,)
    allowed: ClassVar[tuple[str, ...]] = ("answer", "evidence", "condition")

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def check(self, subject: Subject) -> None:
        if self.variable not in self.allowed:
            raise unknown("variable", "variable", self.variable, self.allowed)
        told = subject.run.config.task
        subject.require_tokens("a task whose answers are tokens, as these can be equal", said=True)
        if self.variable == "evidence":
            subject.require_tokens("a task of tokens, as the evidence is one", read=True)
            batch = subject.batch(jax.random.key(0), CHECKED)
            at, each = batch.last_evidence[:, -1], jnp.arange(CHECKED)
            copies = jnp.all(batch.inputs[each, at] == right_answer(batch))
            what = "a task that answers the token of the evidence, and has two others of its role in every item"
            require(bool(copies & jnp.all(jnp.sum(_rivals(batch), axis=1) >= 2)), "task", told, what)

    def layers(self, subject: Subject) -> list[int]:
        found = super().layers(subject)
        if self.variable == "condition":
            second_condition(subject)
        return found


def width(subject: Subject, name: str) -> int:
    """The last axis of a site."""
    return int(jax.eval_shape(lambda: subject.apply(subject.batch(jax.random.key(0), 1), [name])[1])[name].shape[-1])


def pairs(subject: Subject, names: Sequence[str], variable: str, key: Key[jax.Array, ""], count: int) -> Pairs:
    """`count` fresh pairs, with what these sites hold, which have one width."""
    return {"answer": _answers, "evidence": _evidence, "condition": _conditions}[variable](subject, names, key, count)


def _answers(subject: Subject, names: Sequence[str], key: Key[jax.Array, ""], count: int) -> Pairs:
    first, second, third = jax.random.split(key, 3)
    base, source = subject.batch(first, count), subject.batch(second, count)
    held = stacked(subject, names, source)[:, jnp.arange(count), last_rows(subject, source)]
    was, told = right_answer(base), right_answer(source)
    rows = last_rows(subject, base)[:, None]
    # Of further items: answers of so few pairs as one cannot be dealt anew among them.
    mixed = right_answer(subject.batch(third, count))
    return Pairs(base, rows, held[:, :, None], was[:, None], told[:, None], was, told, mixed)


def _rivals(batch: Batch) -> Bool[jax.Array, "B T"]:
    """Rows that could hold the last answer, and do not: of the evidence's role, with another token."""
    at, each = batch.last_evidence[:, -1], jnp.arange(len(batch.query))
    role = jnp.broadcast_to(jnp.asarray(batch.tokens.role), batch.inputs.shape)
    valid = jnp.broadcast_to(jnp.asarray(batch.tokens.valid), batch.inputs.shape)
    return valid & (role == role[each, at][:, None]) & (batch.inputs != batch.inputs[each, at][:, None])


def _evidence(subject: Subject, names: Sequence[str], key: Key[jax.Array, ""], count: int) -> Pairs:
    drawn, picked = jax.random.split(key)
    base, each = subject.batch(drawn, count), jnp.arange(count)
    rivals = _rivals(base)
    at = base.last_evidence[:, -1]
    other, third = jax.lax.top_k(jnp.where(rivals, jax.random.uniform(picked, rivals.shape), -1.0), 2)[1].T
    streams = stacked(subject, names, base)
    held = jnp.zeros_like(streams).at[:, each, at].set(streams[:, each, other])
    held = held.at[:, each, other].set(streams[:, each, at])
    before, after = (jnp.broadcast_to(jnp.array(told), (count, 2)) for told in ([1, 0], [0, 1]))
    was, told, mixed = (base.inputs[each, row] for row in (at, other, third))
    return Pairs(base, jnp.stack([at, other], axis=1), held, before, after, was, told, mixed)


def second_condition(subject: Subject) -> Subject:
    """The subject in the other condition of the pair."""
    task, first = subject.run.task, subject.condition
    grid = task.conditions()
    others = [other for other in grid if first.items and other.items == first.items and other != first]
    alike = [other for other in others if _alike(subject, other)]
    if not alike:
        names = [one.name for one in grid if one.items]
        allowed = f"--condition {' or '.join(names)}" if names else "a task that has such conditions"
        raise ConfigError(
            f"variable = 'condition' needs two conditions of the same items, and {show(first.name)} of task ="
            f" {subject.run.config.task} is in no such pair; allowed: {allowed}."
        )
    return dataclasses.replace(subject, condition=alike[0])


def _alike(subject: Subject, other: Condition) -> bool:
    """Whether sequences of both conditions have the same layout, as base and source are of either."""
    task, first = subject.run.task, subject.condition
    if (task.length(first), task.context_length(first)) != (task.length(other), task.context_length(other)):
        return False
    told = zip(task.tokens(first), task.tokens(other), strict=True)
    return all(bool((one == two).all()) for one, two in told)


def _conditions(subject: Subject, names: Sequence[str], key: Key[jax.Array, ""], count: int) -> Pairs:
    second = second_condition(subject)
    ours, theirs, bits = jax.random.split(key, 3)
    bit, sent, unsent = jax.random.bernoulli(bits, shape=(3, count))
    both = [one.batch(ours, count) for one in (subject, second)]  # the same items, in either condition
    base = either(bit, *both)
    source = either(sent, *(one.batch(theirs, count) for one in (subject, second)))
    held = stacked(subject, names, source)[:, jnp.arange(count), last_rows(subject, source)]
    told, mixed = (jnp.where(x, right_answer(both[1]), right_answer(both[0])) for x in (sent, unsent))
    before, after = (x.astype(jnp.int32)[:, None] for x in (bit, sent))
    rows, was = last_rows(subject, base)[:, None], right_answer(base)
    return Pairs(base, rows, held[:, :, None], before, after, was, told, mixed)


def either(second: Bool[jax.Array, "B"], first: Batch, other: Batch) -> Batch:
    """Of each item the one of two batches that is told."""

    def chosen(x: Any, y: Any) -> Any:
        return jnp.where(second.reshape(-1, *[1] * (x.ndim - 1)), y, x)

    (own, shared), (others, _) = own_and_shared(first.tokens), own_and_shared(other.tokens)
    rest = jax.tree.map(chosen, first._replace(tokens=None), other._replace(tokens=None))  # type: ignore[arg-type]
    return rest._replace(tokens=of_both(jax.tree.map(chosen, own, others), shared))
