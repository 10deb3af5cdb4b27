"""Interventions: the same items with their positions changed, for measuring a trained model again.

Each changes one thing and leaves the right answer as it was: where contents stand, which positions the model is told,
how much stands in front, or how the model reads. An item and its changed form are measured side by side, so that
differences are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Mapped, Shaped
from positionbias.config.build import Experiment
from positionbias.evaluation.rows import ANSWERS_CHANGED, ORDER_SENSITIVITY
from positionbias.spec import ConfigError, canonical, member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Task, world_of
from positionbias.tasks.sampling import permutation
from positionbias.tokens import Tokens, joined

FARTHEST = 2**20  # rows
LOOKED_AT = 64  # items that tell where a task's evidence stands; rarer places are not seen


class Intervention:
    """A change of an example's positions, or of the model that reads it. This one changes nothing."""

    axis = "interventions"
    share: ClassVar[str] = ANSWERS_CHANGED  # what the share of answers that it changes is called
    only_told: ClassVar[bool] = False  # whether `change` changes nothing but the positions that the model is told
    moves: ClassVar[bool] = False  # whether `change` changes what stands where, before the model is asked
    records: ClassVar[tuple[str, ...]] = ()  # the sites that `merit` needs
    under: Intervention | None = None  # how the items are read that the changed ones are held against, and these too

    @property
    def readings(self) -> int:
        """How many forms of an item are read, whose answers `joined` makes one."""
        return 1

    def check(self, task: Task, condition: Condition) -> None:
        """Raise ConfigError where the task has nothing to change in this way."""

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        """The experiment whose model reads the changed items, with the parameters of the one trained.

        Raises ConfigError where this model cannot.
        """
        return experiment

    def reach(self, experiment: Experiment, condition: Condition, tokens: Tokens | None = None) -> Bool[Mapped, "T T"]:
        """`Experiment.reach` of a changed example, `experiment` being the one that `model` gives.

        `tokens` are those of its T rows; what is known is known of those, whatever is put in front.
        """
        tokens = experiment.task.tokens(condition) if tokens is None else tokens
        read = self.tokens_read(tokens, experiment.task, condition)
        if read.length == tokens.length:
            return experiment.reach(condition, read)
        return experiment.reach(condition, read, tokens.length)[-tokens.length :]

    def farther(self) -> int:
        """How many positions farther than assigned a changed example reaches."""
        return 0

    def change(self, key: Key[jax.Array, ""], example: Batch, task: Task, condition: Condition) -> Batch:
        """The changed example, of the same length."""
        return example

    def reading(
        self, key: Key[jax.Array, ""], number: Int[jax.Array, ""], example: Batch, task: Task, condition: Condition
    ) -> Batch:
        """The form of the example that is read as `number`, from 0."""
        return self.change(key, example, task, condition)

    def tokens_read(self, tokens: Tokens, task: Task, condition: Condition) -> Tokens:
        """Tokens, [..., T], with those of the rows that are put in front."""
        return tokens

    def inputs_read(
        self, inputs: Shaped[jax.Array, "B T *Din"], task: Task, condition: Condition
    ) -> Shaped[jax.Array, "B U *Din"]:
        """Inputs with the rows that are put in front."""
        return inputs

    def merit(
        self, recorded: Mapping[str, jax.Array], tokens: Tokens, rows: Int[jax.Array, "B A"]
    ) -> Float[jax.Array, "B"]:
        """How good a reading is, from the sites it `records`, its tokens, and the rows that answer."""
        raise NotImplementedError

    def joined(self, so_far: Any, found: Any, number: Int[jax.Array, ""]) -> Any:
        """What is found of the readings 0..number, from that of those before and of this one.

        Columns of rows, a leading B on each, with `given` f32[B, A, V], the outputs that answer, and `merit` f32[B]
        where sites are recorded. At number 0 there is nothing in `so_far` yet.
        """
        raise NotImplementedError


@member("interventions", "shift")
@dataclasses.dataclass(frozen=True)
class Shift(Intervention):
    """Every token is told a position `by` farther on; contents, order and masks stay."""

    by: int = 8

    only_told = True

    def __post_init__(self) -> None:
        require(1 <= self.by <= FARTHEST, f"{canonical(self)}: by", self.by, f"a whole number from 1 to {FARTHEST}")

    def farther(self) -> int:
        return self.by

    def change(self, key: jax.Array, example: Batch, task: Task, condition: Condition) -> Batch:
        tokens = example.tokens
        spare = jnp.where(jnp.asarray(tokens.spare) >= 0, tokens.spare + self.by, -1)
        return _told(example._replace(tokens=tokens._replace(spare=spare)), tokens.position + self.by)


@member("interventions", "move_query")
@dataclasses.dataclass(frozen=True)
class MoveQuery(Intervention):
    """The rows from the end of the context on are told positions `by` farther on: the question moves, alone."""

    by: int = 8

    only_told = True

    def __post_init__(self) -> None:
        require(1 <= self.by <= FARTHEST, f"{canonical(self)}: by", self.by, f"a whole number from 1 to {FARTHEST}")

    def farther(self) -> int:
        return self.by

    def check(self, task: Task, condition: Condition) -> None:
        first, length = task.context_length(condition), task.length(condition)
        where = f"{canonical(self)}: in condition {condition.name} of the task {canonical(task)}"
        if not 0 < first < length:
            what = "all rows stand" if first < length else "no row stands"
            raise ConfigError(f"{where} {what} behind the context, so no question can move alone; allowed: shift.")
        key = jax.random.key(0)
        drawn = jax.jit(lambda key, world: task.batch(key, condition, LOOKED_AT, world).evidence)
        evidence = np.asarray(drawn(key, world_of(task, key)))
        moves, stays = np.any(evidence >= first, axis=-1), np.any((evidence >= 0) & (evidence < first), axis=-1)
        if np.any(moves & stays):  # where all of an answer's evidence is its question, the question still moves alone
            raise ConfigError(
                f"{where} part of the evidence stands behind the context and would move with the question; allowed:"
                " shift, or conditions whose evidence stands in the context."
            )

    def change(self, key: jax.Array, example: Batch, task: Task, condition: Condition) -> Batch:
        asks = jnp.arange(task.length(condition)) >= task.context_length(condition)
        return _told(example, example.tokens.position + self.by * asks)


@member("interventions", "pad")
@dataclasses.dataclass(frozen=True)
class Pad(Intervention):
    """`by` visible filler tokens are put in front: everything moves, and there is more to attend to."""

    by: int = 8

    def __post_init__(self) -> None:
        require(1 <= self.by <= FARTHEST, f"{canonical(self)}: by", self.by, f"a whole number from 1 to {FARTHEST}")

    def check(self, task: Task, condition: Condition) -> None:
        if task.filler is None:
            raise ConfigError(
                f"{canonical(self)}: the task {canonical(task)} has no filler token; allowed: shift, which moves the"
                " positions that are told."
            )
        most = LONGEST - task.length(condition)
        what = f"at most {most}, {LONGEST} rows in all with the {task.length(condition)} of condition {condition.name}"
        require(self.by <= most, f"{canonical(self)}: by", self.by, what)

    def tokens_read(self, tokens: Tokens, task: Task, condition: Condition) -> Tokens:
        return joined(tokens.parted(0, self.by))

    def inputs_read(self, inputs: jax.Array, task: Task, condition: Condition) -> jax.Array:
        filler = jnp.full((len(inputs), self.by), task.filler or 0, inputs.dtype)
        return jnp.concatenate([filler, inputs], axis=1)


class Rearranging(Intervention):
    """Segments in another order. With `under`, items in either order are read as that intervention has them read."""

    share = ORDER_SENSITIVITY
    moves = True

    def __post_init__(self) -> None:
        if self.under is not None and (self.under.moves or self.under.only_told):
            raise ConfigError(
                f"{canonical(self)}: under = {canonical(self.under)} is not allowed, it changes the items themselves;"
                " allowed: what changes how they are read, such as pine."
            )

    @property
    def _reader(self) -> Intervention:
        return self.under or Intervention()

    def check(self, task: Task, condition: Condition) -> None:
        segments_of(self, task, condition)
        self._reader.check(task, condition)

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        return self._reader.model(experiment, condition)

    def reach(self, experiment: Experiment, condition: Condition, tokens: Tokens | None = None) -> Bool[Mapped, "T T"]:
        return self._reader.reach(experiment, condition, tokens)

    def tokens_read(self, tokens: Tokens, task: Task, condition: Condition) -> Tokens:
        return self._reader.tokens_read(tokens, task, condition)

    def inputs_read(self, inputs: jax.Array, task: Task, condition: Condition) -> jax.Array:
        return self._reader.inputs_read(inputs, task, condition)


@member("interventions", "permute")
@dataclasses.dataclass(frozen=True)
class Permute(Rearranging):
    """The segments of each item (its pairs, documents) are put in a random order of the item's own.

    With `under`, what changes how a model reads, such as `pine`, both orders are read so.
    """

    under: Intervention | None = None

    def change(self, key: jax.Array, example: Batch, task: Task, condition: Condition) -> Batch:
        count = segments_of(self, task, condition)
        return rearranged(example, permutation(key, count), task)


@member("interventions", "swap")
@dataclasses.dataclass(frozen=True)
class Swap(Rearranging):
    """The segments that stand at places `first` and `second` change places; negative places count from the end.

    With `under`, what changes how a model reads, such as `pine`, both orders are read so.
    """

    first: int = 0
    second: int = -1
    under: Intervention | None = None

    def _places(self, task: Task, condition: Condition) -> tuple[int, int]:
        count = segments_of(self, task, condition)
        for name in ("first", "second"):
            place = getattr(self, name)
            if not -count <= place < count:
                raise ConfigError(
                    f"{canonical(self)}: {name} = {place} is not allowed; allowed: {-count} to {count - 1}, the task"
                    f" has {count} segments."
                )
        first, second = self.first % count, self.second % count
        if first == second:
            raise ConfigError(f"{canonical(self)}: first and second are one place; allowed: two places.")
        return first, second

    def check(self, task: Task, condition: Condition) -> None:
        super().check(task, condition)
        self._places(task, condition)

    def change(self, key: jax.Array, example: Batch, task: Task, condition: Condition) -> Batch:
        first, second = self._places(task, condition)
        places = np.arange(segments_of(self, task, condition))
        places[[first, second]] = places[[second, first]]
        return rearranged(example, jnp.asarray(places), task)


def segments_of(change: Intervention, task: Task, condition: Condition) -> int:
    """How many segments the task's examples have, numbered from 1; 0 is what belongs to none."""
    if not task.movable:
        raise ConfigError(
            f"{canonical(change)}: the task {canonical(task)} has no segments that may stand in any order;"
            " allowed: shift, move_query."
        )
    count = task.segments(condition)
    if count < 2:
        raise ConfigError(f"{canonical(change)}: the task {canonical(task)} has {count} segments; allowed: from 2.")
    return count


def _told(example: Batch, position: Int[jax.Array, "T"]) -> Batch:
    return example._replace(tokens=example.tokens._replace(position=jnp.asarray(position, jnp.int32)))


def rearranged(example: Batch, place: Int[jax.Array, "S"], task: Task) -> Batch:
    """The example with its segments in another order: segment s (from 1) goes to place `place[s - 1]` (from 0).

    Segments may have any lengths and need not be contiguous: their tokens, in the new order of segments and within a
    segment in the order they had, fill the rows that segments held before. All that speaks of rows follows.
    """
    tokens = example.tokens
    segment, rows = jnp.asarray(tokens.segment), jnp.arange(tokens.length)
    inside = (segment > 0) & jnp.asarray(tokens.valid)
    rank = jnp.where(inside, place[segment - 1], tokens.length)
    # Rows of segments first, by new place, then by old row; the others keep theirs.
    order = jnp.lexsort((rows, rank))
    held = jnp.cumsum(inside) - 1  # which of the segments' rows this one is
    source = jnp.where(inside, order[held], rows)  # old row of what now stands here
    where = jnp.zeros_like(rows).at[source].set(rows)
    contents = ("segment", "role", "frame", "scale", "valid")
    moved = tokens._replace(**{name: jnp.asarray(getattr(tokens, name))[source] for name in contents})

    def followed(row: jax.Array) -> jax.Array:
        return jnp.where(row >= 0, where[row], row)

    slot = example.evidence_slot
    answer = example.query - example.distance
    query = followed(example.query)
    changed = example._replace(
        inputs=example.inputs[source],
        targets=example.targets[source],
        weights=example.weights[source],
        tokens=moved,
        query=query,
        evidence=followed(example.evidence),
        source=followed(example.source),
        distance=query - followed(answer),
        evidence_slot=place[slot] if task.slots_are_segments else slot,
    )
    return task.after_move(changed)
