"""Linear probe: what a linear classifier can tell of a variable of the task from the stream, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from positionbias.analysis.alignment import MOST, descended
from positionbias.analysis.base import STREAM, Axes, Labels, Subject, last_rows, right_answer, sites, stacked
from positionbias.analysis.variables import OfVariable, either, second_condition
from positionbias.arrays import Float, Int, Key
from positionbias.spec import member, require
from positionbias.tasks.base import Batch

PLACES = ("evidence", "answer", "random")


class Seen(NamedTuple):
    """Of items the streams of rows of each kind, the tokens of these rows (0 for vectors), and the variable."""

    stream: Float[jax.Array, "L place items D"]
    types: Int[jax.Array, "place items"]
    value: Int[jax.Array, "items"]


@member("analyses", "linear_probe")
@dataclasses.dataclass(frozen=True)
class LinearProbe(OfVariable):
    """Accuracy of a linear classifier of a variable in the stream behind every layer, on items it was not fitted to.

    Alain and Bengio 2016 (arXiv 1610.01644); selectivity after Hewitt and Liang 2019 (arXiv 1909.03368). Multinomial
    logistic regression of standardised features, fitted to `examples` items by `updates` steps of Adam on all of them,
    with `penalty` times the squared weights. Of the rows that hold the last "evidence", those that "answer", and one at
    "random" that does neither. The variable is of the last answer: "answer", the right token; "evidence", the token of
    its last evidence; "question", the token of the row that answers; "slot", the evidence's slot on the task's own
    axis; or "condition", which of two conditions holds that have the same items but for it.

    "accuracy" is that of other items, and "control" that of a probe of the control task: the label of a row is that of
    its token, drawn once for each token from the labels there are, which a probe learns that knows nothing but tokens.
    "selectivity" is the difference. (Each vector is a type of its own, so for tasks of vectors "control" is
    "shuffled".) "shuffled" is that of a probe that learned shuffled labels, on shuffled labels; "majority" the share of
    the commonest value, what a probe of nothing reaches.
    """

    variable: str = "answer"
    examples: int = 1024
    updates: int = 100
    penalty: float = 1e-3

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("accuracy", "control", "selectivity", "shuffled"), ("layer", "place")),
        "majority": (),
    }
    shown = "accuracy"
    labels: ClassVar[Labels] = {"place": PLACES}
    draws = True
    allowed: ClassVar[tuple[str, ...]] = ("answer", "evidence", "question", "slot", "condition")

    def __post_init__(self) -> None:
        for name in ("examples", "updates"):
            require(1 <= getattr(self, name) <= MOST, name, getattr(self, name), f"a whole number from 1 to {MOST}")
        require(0 <= self.penalty <= 1e6, "penalty", self.penalty, "a number from 0 to 1000000")

    def check(self, subject: Subject) -> None:
        super().check(subject)
        if self.variable in ("evidence", "question"):
            subject.require_tokens("a task of tokens, as the variable is one", read=True)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        names, task = sites(layers, STREAM), subject.run.task
        fitted, judged, order, typed = jax.random.split(key, 4)
        sizes = {"answer": task.output.size, "slot": task.slots(subject.condition)["evidence"], "condition": 2}
        classes = sizes.get(self.variable, task.input.size)
        train, test = (
            self._seen(subject, names, key, count) for key, count in ((fitted, self.examples), (judged, subject.items))
        )

        of_types = train.value[jax.random.randint(typed, (task.input.size,), 0, self.examples)]

        def judge(
            order: Key[jax.Array, ""], streams: tuple[jax.Array, jax.Array], types: tuple[jax.Array, jax.Array]
        ) -> jax.Array:
            """Accuracies with labels as they are, those of types, and shuffled."""
            mean, spread = jnp.mean(streams[0], axis=0), jnp.std(streams[0], axis=0) + 1e-6
            x, other = ((one - mean) / spread for one in streams)

            def accuracy(label: jax.Array, known: jax.Array) -> jax.Array:
                scores = fitted_scores(x, label, other, classes, self.updates, self.penalty)
                return jnp.mean((jnp.argmax(scores, axis=-1) == known).astype(jnp.float32))

            mixed = (
                jax.random.permutation(one, y)
                for one, y in zip(jax.random.split(order), (train.value, test.value), strict=True)
            )
            shuffled = accuracy(*mixed)
            control = accuracy(*(of_types[one] for one in types)) if task.input.kind == "tokens" else shuffled
            return jnp.stack([accuracy(train.value, test.value), control, shuffled])

        flat = tuple(x.stream.reshape(-1, *x.stream.shape[2:]) for x in (train, test))  # [L * place, items, D]
        types = tuple(jnp.tile(x.types, (len(names), 1)) for x in (train, test))
        found = jax.lax.map(lambda told: judge(*told), (jax.random.split(order, len(flat[0])), flat, types))
        right, control, shuffled = found.T.reshape(3, len(names), len(PLACES))
        counts = jnp.zeros(classes).at[test.value].add(1.0)
        return {
            "accuracy": right,
            "control": control,
            "selectivity": right - control,
            "shuffled": shuffled,
            "majority": jnp.max(counts) / len(test.value),
        }

    def _seen(self, subject: Subject, names: list[str], key: Key[jax.Array, ""], count: int) -> Seen:
        drawn, own, sides = jax.random.split(key, 3)
        batch, length = subject.batch(drawn, count), subject.run.task.length(subject.condition)
        value = self._value(batch) if self.variable != "condition" else jnp.zeros(count, jnp.int32)
        if self.variable == "condition":
            bit = jax.random.bernoulli(sides, shape=(count,))
            batch, value = either(bit, batch, second_condition(subject).batch(drawn, count)), bit.astype(jnp.int32)

        def one(piece: Batch, key: Key[jax.Array, ""]) -> tuple[jax.Array, jax.Array]:
            evidence, answer = piece.last_evidence[:, -1], last_rows(subject, piece)
            draw = jax.random.uniform(key, (len(answer), length))
            index = jnp.arange(length)
            taken = jnp.any(piece.evidence.reshape(len(answer), -1, 1) == index, axis=1) | (index == answer[:, None])
            random = jnp.argmax(jnp.where(taken, -1.0, draw), axis=1)
            rows, each = jnp.stack([evidence, answer, random]), jnp.arange(len(answer))
            types = piece.inputs[each, rows] if piece.inputs.ndim == 2 else jnp.zeros_like(rows)
            return stacked(subject, names, piece)[:, each, rows], types

        found, types = subject.pieces(batch, one, own)  # [piece, L, place, items, D] and [piece, place, items]
        stream = jnp.moveaxis(found, 0, 2).reshape(len(names), len(PLACES), count, -1)
        return Seen(stream, jnp.moveaxis(types, 0, 1).reshape(len(PLACES), count), value)

    def _value(self, batch: Batch) -> Int[jax.Array, "B"]:
        each = jnp.arange(len(batch.query))
        if self.variable == "answer":
            return right_answer(batch)
        if self.variable == "slot":
            return batch.evidence_slot[:, -1]
        return batch.inputs[each, (batch.last_evidence if self.variable == "evidence" else batch.query)[:, -1]]


def fitted_scores(
    x: Float[jax.Array, "M D"],
    label: Int[jax.Array, "M"],
    other: Float[jax.Array, "K D"],
    classes: int,
    updates: int,
    penalty: float,
) -> Float[jax.Array, "K C"]:
    """Scores of the classes of other items, by logistic regression fitted to these."""

    def loss(weights: tuple[jax.Array, jax.Array], key: jax.Array, share: jax.Array) -> jax.Array:
        scores = x @ weights[0] + weights[1]
        each = optax.softmax_cross_entropy_with_integer_labels(scores, label)
        return jnp.mean(each) + penalty * jnp.sum(jnp.square(weights[0]))

    start = (jnp.zeros((x.shape[1], classes)), jnp.zeros(classes))
    weights = descended(loss, start, optax.adam(0.05), jax.random.key(0), updates)
    return other @ weights[0] + weights[1]
