"""What an analysis is: a function from a loaded run to arrays with named axes, and the one of them that is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from positionbias.arrays import Float, Int, Key, Tree
from positionbias.evaluation.loading import LoadedRun
from positionbias.spec import ConfigError, canonical, require
from positionbias.tasks.base import Batch, Condition
from positionbias.tokens import of_both, own_and_shared

Axes = Mapping[str, tuple[str, ...]]
Labels = Mapping[str, tuple[str, ...]]
TOKENS = 4096  # of examples that are computed at once
PATTERN = "layers.*.attention.pattern"
SCORES = "layers.*.attention.scores"
STREAM = "layers.*.stream"


@dataclasses.dataclass(frozen=True)
class Subject:
    """One replica of a run at one checkpoint, and the condition and number of the items to ask it about."""

    run: LoadedRun  # of one replica, whose weights may be traced
    condition: Condition
    items: int
    given: Tree = ()  # what `Analysis.given` found of this replica

    def batch(self, key: Key[jax.Array, ""], items: int | None = None) -> Batch:
        """Items of the replica's own, or as many as told."""
        return self.run.drawn(key, items or self.items, self.condition)

    def apply(self, batch: Batch, record: Any = (), edit: Any = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Outputs, and recorded sites; see `LoadedRun.apply`."""
        return self.run.apply(batch, record, edit, self.condition.name)

    def require_tokens(self, allowed: str, *, read: bool = False, said: bool = False) -> None:
        """Raise ConfigError, with what is `allowed`, where what the model reads, or says, as told, are not tokens."""
        kinds = (self.run.task.input.kind, self.run.experiment.objective.targets)
        wrong = any(asked and kind != "tokens" for asked, kind in zip((read, said), kinds, strict=True))
        require(not wrong, "task", self.run.config.task, allowed)

    def answers(self, outputs: Float[jax.Array, "B T V"], batch: Batch) -> dict[str, Float[jax.Array, "B A"]]:
        """Of every answer whether it is right, as 0 or 1, and the log-probability of the right one in nats."""
        objective, each = self.run.experiment.objective, jnp.arange(len(outputs))[:, None]
        given, target = outputs[each, self.run.answer_rows(batch)], batch.targets[each, batch.query]
        return {
            "accuracy": objective.right(given, target).astype(jnp.float32),
            "log_probability": objective.log_probability(given, target),
        }

    def said(self, outputs: Float[jax.Array, "B T V"], batch: Batch) -> Int[jax.Array, "B A"]:
        """What every answer says."""
        each = jnp.arange(len(outputs))[:, None]
        return self.run.experiment.objective.said(outputs[each, self.run.answer_rows(batch)])

    def averaged(
        self, batch: Batch, function: Callable[..., Tree], *keys: Key[jax.Array, ""], beside: Tree = None
    ) -> Tree:
        """The mean over pieces of the batch of what `function` makes of each, itself a mean over its items."""
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), self.pieces(batch, function, *keys, beside=beside))

    def each(self, batch: Batch, function: Callable[..., Tree], beside: Tree = None) -> Tree:
        """What `function` makes of every item, [B, ...]."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.pieces(batch, function, beside=beside))

    def pieces(
        self, batch: Batch, function: Callable[..., Tree], *keys: Key[jax.Array, ""], beside: Tree = None
    ) -> Tree:
        """What `function` makes of each piece of the batch, one after another along a new first axis.

        Pieces are as small as they have to be: patterns of attention grow with the square of the length. Each is given
        keys of its own, one for every one told. `beside`, if told, holds arrays [B, ...] with something of every item,
        which the function gets its part of behind the batch.
        """
        length, count = self.run.task.length(self.condition), len(batch.query)
        most = max(TOKENS // length, 1)
        size = max(size for size in range(1, most + 1) if count % size == 0)
        own, shared = own_and_shared(batch.tokens)
        told = () if beside is None else (beside,)
        split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (batch._replace(tokens=None), own, told))  # type: ignore[arg-type]

        def one(piece: tuple[Batch, Any, tuple[Tree, ...], list[jax.Array]]) -> Tree:
            return function(piece[0]._replace(tokens=of_both(piece[1], shared)), *piece[2], *piece[3])

        return jax.lax.map(one, (*split, [jax.random.split(key, count // size) for key in keys]))

    def accuracy(self, batch: Batch, edit: Any = None) -> dict[str, Float[jax.Array, ""]]:
        """The mean "accuracy" and "log_probability" of the answers of a batch, under an edit."""

        def one(piece: Batch) -> dict[str, jax.Array]:
            outputs, _ = self.apply(piece, (), edit)
            return jax.tree.map(jnp.mean, self.answers(outputs, piece))

        return self.averaged(batch, one)


class Analysis:
    """A question to a trained model: a frozen dataclass, registered on the axis "analyses", one file each.

    `axes` names the axes of every array that `measure` returns, () of a number; `shown` is the array that the report
    draws, a curve if it has one axis, a map if it has two. The axis "layer" is made of the layers in `layers`, one of
    `labels` of what these say, or of `labelled` where that depends on arguments or the run, and others of numbers.
    """

    axes: ClassVar[Axes]
    shown: ClassVar[str]
    labels: ClassVar[Labels] = {}
    any_rows: ClassVar[bool] = False  # whether layers may have other rows than the inputs: fewer, or one that is added
    across: ClassVar[Mapping[str, tuple[str, str]]] = {}  # correlations over replicas, of two arrays of one number each
    whole: ClassVar[bool] = False  # whether it makes sense only if every layer has what it reads
    alike: ClassVar[tuple[str, ...]] = ()  # of what it reads, what must have one width, the last axis, wherever it is
    draws: ClassVar[bool] = (
        False  # whether it draws by the piece, so that numbers depend a little on how items are split
    )

    def reads(self) -> tuple[str, ...]:
        """Patterns of the sites that it records, `*` for the layer."""
        return (PATTERN,)

    def check(self, subject: Subject) -> None:
        """Raise ConfigError where it cannot ask this run, for other reasons than the sites it reads."""

    def given(self, run: LoadedRun) -> Tree:
        """Arrays [R, ...] of all replicas of a run that it reads beside their weights: `subject.given` in `measure`.

        Raises ConfigError where the run has not what it needs.
        """
        return ()

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        """What stands at the places of axes that are not of numbers."""
        return self.labels

    def layers(self, subject: Subject) -> list[int]:
        """The layers that have what it reads. Raises ConfigError where there are none, or `whole` and not all.

        And where rows are not those of the inputs, or widths not `alike`.
        """
        shapes = jax.eval_shape(lambda: subject.apply(subject.batch(jax.random.key(0), 1), ["*"])[1])
        config, found = subject.run.config, list[int]()
        for layer in range(config.model.layers):
            if all(sites([layer], site)[0] in shapes for site in self.reads()):
                found.append(layer)
        told = f"model.architecture = {config.model.architecture}, model.operator = {config.model.operator}"
        name, needs = canonical(self), " and ".join(self.reads())
        if not found:
            raise ConfigError(f"--analyses: {name} reads {needs}, which no layer has with {told}.")
        if self.whole and len(found) < config.model.layers:
            lacking = sorted(set(range(config.model.layers)) - set(found))
            raise ConfigError(f"--analyses: {name} reads {needs} of every layer, not so of layer {lacking[0]}, {told}.")
        length = subject.run.task.length(subject.condition)
        of = {site: [shapes[name].shape for name in sites(found, site)] for site in self.reads()}
        square = (PATTERN, SCORES)
        rows = {n for site in of for shape in of[site] for n in (shape[-2:] if site in square else shape[1:2])}
        if not self.any_rows and rows != {length}:
            raise ConfigError(f"--analyses: {name} reads {needs} of all {length} rows of inputs, not so with {told}.")
        if len({shape[-1] for site in self.alike for shape in of[site]}) > 1:
            raise ConfigError(
                f"--analyses: {name} reads {' and '.join(self.alike)} of one width, not so with model.residual ="
                f" {config.model.residual}; allowed: a model whose layers do not widen the stream."
            )
        return found

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        """The arrays that `axes` names, of one replica; traced, and mapped over replicas."""
        raise NotImplementedError


def sites(layers: Sequence[int], site: str) -> list[str]:
    """The names of a site, with `*` for the layer, in these layers."""
    return [site.replace("*", str(layer), 1) for layer in layers]


def stacked(subject: Subject, names: Sequence[str], batch: Batch, edit: Any = None) -> Float[jax.Array, "L B ..."]:
    """What these sites hold, which have one shape."""
    _, found = subject.apply(batch, names, edit)
    return jnp.stack([found[name].astype(jnp.float32) for name in names])


def recorded(
    subject: Subject, layers: Sequence[int], site: str, batch: Batch, edit: Any = None
) -> Float[jax.Array, "L B ..."]:
    """What a site holds in each of these layers, which have it in one shape."""
    return stacked(subject, sites(layers, site), batch, edit)


def at_layer(names: Sequence[str], layer: jax.Array, edit: Callable[[int, jax.Array], Any], rows: jax.Array) -> Any:
    """The edits `edit(number, rows)` of the site of one layer, which may be traced: others are edited in no row."""
    return {name: edit(i, jnp.where(layer == i, rows, -1)) for i, name in enumerate(names)}


def patterns(subject: Subject, layers: list[int], batch: Batch) -> Float[jax.Array, "L B N T T"]:
    """The attention of each of these layers, causal or not: weights of rows on columns."""
    return recorded(subject, layers, PATTERN, batch)


def evenly(pattern: Float[jax.Array, "... T T"]) -> Float[jax.Array, "... T T"]:
    """The attention of rows that attend evenly to all that they give any weight: what preferences are held against."""
    seen = pattern > 0
    return seen / jnp.maximum(jnp.sum(seen, axis=-1, keepdims=True), 1)


def kl(base: Float[jax.Array, "... V"], other: Float[jax.Array, "... V"]) -> Float[jax.Array, "..."]:
    """KL(base || other) in nats, of logits."""
    p, q = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (base, other))
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def last_rows(subject: Subject, batch: Batch) -> Int[jax.Array, "B"]:
    """The output row of each item's last answer."""
    return subject.run.answer_rows(batch)[:, -1]


def last_outputs(subject: Subject, outputs: Float[jax.Array, "B T V"], batch: Batch) -> Float[jax.Array, "B V"]:
    """The outputs of each item's last answer."""
    return outputs[jnp.arange(len(outputs)), last_rows(subject, batch)]


def right_answer(batch: Batch) -> Int[jax.Array, "B"]:
    """The token that each item's last answer should be."""
    return batch.targets[jnp.arange(len(batch.query)), batch.query[:, -1]]
