"""Linear probe: what a linear classifier can tell of a variable of the task from the stream, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

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

    "accuracy" is that of other items, "shuffled" that of a probe that learned shuffled labels, on shuffled labels, and
    "selectivity" the difference; "majority" is the share of the commonest value, what a probe of nothing reaches.
    """

    variable: str = "answer"
    examples: int = 1024
    updates: int = 100
    penalty: float = 1e-3

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("accuracy", "shuffled", "selectivity"), ("layer", "place")),
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
        fitted, judged, order = jax.random.split(key, 3)
        sizes = {"answer": task.output.size, "slot": task.slots(subject.condition)["evidence"], "condition": 2}
        classes = sizes.get(self.variable, task.input.size)
        train, test = (
            self._seen(subject, names, key, count) for key, count in ((fitted, self.examples), (judged, subject.items))
        )

        def judge(order: Key[jax.Array, ""], streams: tuple[jax.Array, jax.Array]) -> jax.Array:
            """Accuracies with labels as they are, and shuffled."""
            mean, spread = jnp.mean(streams[0], axis=0), jnp.std(streams[0], axis=0) + 1e-6
            x, other = ((one - mean) / spread for one in streams)

            def accuracy(label: jax.Array, known: jax.Array) -> jax.Array:
                scores = fitted_scores(x, label, other, classes, self.updates, self.penalty)
                return jnp.mean((jnp.argmax(scores, axis=-1) == known).astype(jnp.float32))

            mixed = (
                jax.random.permutation(one, y)
                for one, y in zip(jax.random.split(order), (train[1], test[1]), strict=True)
            )
            return jnp.stack([accuracy(train[1], test[1]), accuracy(*mixed)])

        flat = tuple(x.reshape(-1, *x.shape[2:]) for x in (train[0], test[0]))  # [L * place, items, D]
        found = jax.lax.map(lambda told: judge(*told), (jax.random.split(order, len(flat[0])), flat))
        right, shuffled = found.T.reshape(2, len(names), len(PLACES))
        counts = jnp.zeros(classes).at[test[1]].add(1.0)
        return {
            "accuracy": right,
            "shuffled": shuffled,
            "selectivity": right - shuffled,
            "majority": jnp.max(counts) / len(test[1]),
        }

    def _seen(
        self, subject: Subject, names: list[str], key: Key[jax.Array, ""], count: int
    ) -> tuple[Float[jax.Array, "L place items D"], Int[jax.Array, "items"]]:
        """The streams of rows of each kind, and the value of the variable."""
        drawn, own, sides = jax.random.split(key, 3)
        batch, length = subject.batch(drawn, count), subject.run.task.length(subject.condition)
        value = self._value(batch) if self.variable != "condition" else jnp.zeros(count, jnp.int32)
        if self.variable == "condition":
            bit = jax.random.bernoulli(sides, shape=(count,))
            batch, value = either(bit, batch, second_condition(subject).batch(drawn, count)), bit.astype(jnp.int32)

        def one(piece: Batch, key: Key[jax.Array, ""]) -> jax.Array:
            evidence, answer = piece.last_evidence[:, -1], last_rows(subject, piece)
            draw = jax.random.uniform(key, (len(answer), length))
            index = jnp.arange(length)
            taken = jnp.any(piece.evidence.reshape(len(answer), -1, 1) == index, axis=1) | (index == answer[:, None])
            random = jnp.argmax(jnp.where(taken, -1.0, draw), axis=1)
            rows = jnp.stack([evidence, answer, random])
            return stacked(subject, names, piece)[:, jnp.arange(len(answer)), rows]

        found = subject.pieces(batch, one, own)  # [piece, L, place, items, D]
        return jnp.moveaxis(found, 0, 2).reshape(len(names), len(PLACES), count, -1), value

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
