"""The task protocol: a data distribution sampled on the device, which says where the evidence for every answer sits.

`sample` is pure and makes one example; everything the build has to know before sampling (lengths, query rows, the
layout of tokens, the declared positional prior) is static and numpy.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Shaped, Tree
from positionbias.replicas import Layout, stream
from positionbias.spec import ConfigError, unknown
from positionbias.tokens import UNTOLD, Tokens, sequential

CHUNK = 256  # items of a frozen set whose keys come from one; another number draws others
LONGEST = 8192  # rows of a task's sequence: which input can reach which row is checked in quadratic time


class Batch(NamedTuple):
    """One example, or a batch of them with a leading B on every field, but not on `tokens` if examples share them."""

    inputs: Shaped[jax.Array, "... T *Din"]  # token ids i32[T], or vectors f32[T, Din]
    targets: Shaped[jax.Array, "... T *Dout"]  # what row t should say: token ids i32[T], or vectors f32[T, Dout]
    weights: Float[jax.Array, "... T"]  # weight of row t in the loss; 0 where nothing is asked
    tokens: Tokens
    query: Int[jax.Array, "... A"]  # row that answers
    evidence: Int[jax.Array, "... A E"]  # positions the answer needs, in the order a solver needs them, -1 padded
    order: Int[jax.Array, "... A"]  # rank of that order; 0 where there is only one; -1: not for the order gap
    distance: Int[jax.Array, "... A"]  # query minus nearest evidence that holds the answer itself; negative: later
    n_distractors: Int[jax.Array, "... A"]  # wrong candidates among the evidence's like
    source: Int[jax.Array, "... A"]  # input index that holds the teacher-forced target, or -1
    query_slot: Int[jax.Array, "... A"]  # query on the task's own axis, counted from 0 (what curves are drawn over)
    evidence_slot: Int[jax.Array, "... A"]  # the answer-holding evidence on the task's own axis

    @property
    def last_evidence(self) -> Int[jax.Array, "... A"]:
        """The position that holds the answer itself: the last of the evidence."""
        last = self.evidence.shape[-1] - 1 - jnp.argmax(self.evidence[..., ::-1] >= 0, axis=-1)
        return jnp.take_along_axis(self.evidence, last[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class Condition:
    """One cell of a task's evaluation grid: a name and the settings that make it, hashable and static."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    items: str = ""  # conditions with one name here are drawn from one random stream, so that their items are paired

    @property
    def stream(self) -> str:
        """Name of the random stream that its items are drawn from."""
        return self.items or self.name

    def __getitem__(self, key: str) -> Any:
        return dict(self.settings)[key]


@dataclasses.dataclass(frozen=True)
class Size:
    """What a task's inputs or targets are: `tokens` of a vocabulary, or `vectors` of so many features."""

    kind: str
    size: int


class Task:
    """A data distribution with its positions under control."""

    axis = "tasks"
    query_axis = "query position"  # what `query_slot` counts, for labels
    evidence_axis = "evidence position"  # what `evidence_slot` counts, for labels
    filler: int | None = None  # a token that means nothing and may stand anywhere in front, where there is one
    movable: ClassVar[bool] = False  # whether segments 1, 2, ... may stand in any order with the same right answers
    slots_are_segments: ClassVar[bool] = False  # whether `evidence_slot` is the place of a segment among the segments
    by_loss: ClassVar[bool] = False  # whether the loss by position is measured of tokens too, as it is of vectors
    no_baselines: ClassVar[dict[str, str]] = {}  # why there is no "majority" or no "nearest" here, where there is none
    shared_tokens: ClassVar[bool] = True  # whether all examples of a condition have the tokens of `tokens(condition)`
    # Arguments, numbers, that replicas of one program may differ in (`with_traced`): none changes a world, and no more
    # than what is drawn and judged.
    traced: ClassVar[tuple[str, ...]] = ()

    # ---- static

    @property
    def input(self) -> Size:
        """Kind and size of the inputs."""
        raise NotImplementedError

    @property
    def output(self) -> Size:
        """Kind and size of the targets."""
        raise NotImplementedError

    def conditions(self) -> tuple[Condition, ...]:
        """The evaluation grid, at most four static shapes; the first is the one trained on."""
        raise NotImplementedError

    def stretched(self, factor: int) -> Task:
        """The same task with a context `factor` times as long, the same vocabulary and the same world."""
        raise ConfigError(f"{self.spec_name} has no length to stretch; allowed: another task.")  # type: ignore[attr-defined]

    def word(self, token: int) -> str:
        """What a person reads for a token id; must not hold blanks."""
        return str(token)

    def words(self, values: Shaped[np.ndarray, "T *D"], size: Size) -> list[str]:
        """What a person reads at each row of the inputs or targets, which `size` tells apart where they differ."""
        if size.kind == "tokens":
            return [self.word(int(token)) for token in values]
        return [",".join(f"{number:g}" for number in np.round(row, 1)) for row in values]

    def length(self, condition: Condition) -> int:
        """T."""
        raise NotImplementedError

    def context_length(self, condition: Condition) -> int:
        """C: an encoder reads 0..C-1, a decoder C..T-1."""
        raise NotImplementedError

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        """Every row that may answer; no other may weigh, as objectives may train these alone."""
        raise NotImplementedError

    def tokens(self, condition: Condition) -> Tokens:
        """The layout of tokens, numpy [T] each: that of every example, or without `shared_tokens` a permissive one.

        A config is checked against this layout, and nothing may leak under any other. Where examples differ, it must
        therefore let through what any of them lets through (under `segments`: one segment) and hold the largest
        position; `sample` then gives each example its own, and reach and ceilings are judged an example at a time.
        """
        return sequential(self.length(condition))

    def segments(self, condition: Condition) -> int:
        """How many segments every example has, numbered from 1; 0 is what belongs to none."""
        return int(np.max(self.tokens(condition).segment))

    def leaks(self, condition: Condition) -> Bool[np.ndarray, "T T"]:
        """Where input j may hold the target that row i is asked for (`source`); objectives forbid that path."""
        size = self.length(condition)
        return np.zeros((size, size), bool)

    def slots(self, condition: Condition) -> dict[str, int]:
        """Number of slots on each axis: {"query": Pq, "evidence": Pe}."""
        return {axis: len(share) for axis, share in self.prior(condition).items()}

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        """The declared positional prior: the probability of each `query_slot` and `evidence_slot`."""
        raise NotImplementedError

    def with_traced(self, values: Mapping[str, float | Float[jax.Array, ""]]) -> Task:
        """The same task with other values of arguments in `traced`, which may be traced, for sampling and judging.

        What is sampled is what the task with these arguments samples, to the bit. All that is static is not to be asked
        of it: it is that of the task it was made of.
        """
        made = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(made, name, value)
        return made

    # ---- sampled

    def world(self, key: Key[jax.Array, ""]) -> Tree:
        """What holds for all examples of a replica, drawn once: facts, class means. Nothing by default.

        Must not depend on lengths, so that a model can be measured on longer sequences of the world it was trained in.
        """
        return ()

    def corpus(self) -> Mapping[str, np.ndarray]:
        """Stored data that all replicas share, by name, in place of a world of their own; read once and kept.

        Raises ConfigError where it cannot be had. Samplers get it on the device, so it must fit there.
        """
        return {}

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        """One example of a `world`, or of the `corpus` of a task that has one; pure, jit- and vmap-able."""
        raise NotImplementedError

    def batch(self, key: Key[jax.Array, ""], condition: Condition, size: int, world: Tree = ()) -> Batch:
        """`size` independent examples; `tokens` have a leading B only where they are not shared."""
        return self.batch_of(jax.random.split(key, size), condition, world)

    def batch_of(self, keys: Key[jax.Array, "B"], condition: Condition, world: Tree = ()) -> Batch:
        """The example of every key."""
        axes = batch_axes(0, self.shared_tokens)
        return jax.vmap(lambda key: self.sample(key, condition, world), out_axes=axes)(keys)

    def after_move(self, example: Batch) -> Batch:
        """The example with all told anew that moving its segments changes: order and slots, say.

        `evidence` and `tokens` say where everything stands now. `slots_are_segments` alone needs nothing here.
        """
        return example

    # ---- judged, for one example

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Probability that an ideal observer answers right if row i knows only the inputs j with visible[i, j].

        It knows the world as a trained model can. nan where no such observer is known: a mean of ceilings leaves those
        answers out, and how many it is of is told.
        """
        raise NotImplementedError

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """Probability of a right answer for simple rules, which know of the example what the row sees.

        Must hold "chance" (any answer), "majority" (the answer that training asks for most), "nearest" (the last seen
        of what could be one) and "order_free" (the best that knows no order, or a good one where the docstring says
        that the best is not known), but for those of `no_baselines`.
        """
        raise NotImplementedError

    def losses(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """The loss of simple rules on this item, where losses are measured (of vectors, or `by_loss`).

        "floor" is the least loss that an ideal observer expects, who knows what that of `ceiling` does.
        """
        return {}


def layout(task: Task) -> list[Any]:
    """What is known of a task before anything is sampled: sizes, and of each condition lengths, rows and tokens."""
    each = [
        (
            c,
            task.length(c),
            task.context_length(c),
            *(np.asarray(x).tolist() for x in (task.query_rows(c), *task.tokens(c))),
        )
        for c in task.conditions()
    ]
    return [task.input, task.output, *each]


def flat(batch: Batch) -> dict[str, Any]:
    """Every field of a batch by name, those of `tokens` as tokens_NAME: what is stored of it."""
    fields: dict[str, Any] = {name: leaf for name, leaf in batch._asdict().items() if name != "tokens"}
    told = {name: leaf for name, leaf in batch.tokens._asdict().items() if name not in UNTOLD}
    return fields | {f"tokens_{name}": leaf for name, leaf in told.items()}


def batch_axes(axis: int, shared_tokens: bool) -> Any:
    """A `Batch` of vmap axes."""
    axes: dict[str, Any] = dict.fromkeys(Batch._fields, axis)
    return Batch(**{**axes, "tokens": None if shared_tokens else axis})


def item_keys(key: Key[jax.Array, ""], numbers: Int[jax.Array, "N"]) -> Key[jax.Array, "N"]:
    """The key of each item of a frozen set by its number, however many are drawn at once."""
    return jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(key, n // CHUNK), n % CHUNK))(numbers)


def letters(number: int) -> str:
    """The number as letters, for people: a .. z, aa, ab, ..."""
    return (letters(number // 26 - 1) if number >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[number % 26]


def one_of(
    candidates: Bool[jax.Array, "... N"], right: Bool[jax.Array, "... N"], otherwise: Float[jax.Array, "..."]
) -> Float[jax.Array, "..."]:
    """The probability that one of the `candidates` at random is `right`; `otherwise` where there is none."""
    hits = jnp.sum(candidates & right, axis=-1) / jnp.maximum(jnp.sum(candidates, axis=-1), 1)
    return jnp.where(jnp.any(candidates, axis=-1), hits, otherwise)


def world_of(task: Task, key: Key[jax.Array, ""]) -> Tree:
    """What `sample` gets in the replica of this key."""
    return sampled_from(task.corpus(), jax.tree.map(lambda leaf: leaf[0], worlds(task, key[None])))


def sampled_from(corpus: Tree, world: Tree) -> Tree:
    """What `sample` gets: the task's corpus if it has one, else the replica's own world."""
    return corpus or world


@functools.lru_cache(maxsize=1)
def shared_corpus(task: Task, layout: Layout) -> Tree:
    """The task's corpus on every device of the layout, put there once for training and evaluation."""
    return layout.share(task.corpus())


def worlds(task: Task, keys: Key[jax.Array, "R"]) -> Tree:
    """The world of every replica, a leading R on every leaf; () for a task that has none."""
    if type(task).world is Task.world:
        return ()  # and nothing to compile: start-up is short
    return jax.vmap(lambda key: task.world(stream(key, "world")))(keys)


def find_condition(task: Task, name: str, field: str) -> Condition:
    """The task's condition called `name`, or ConfigError with the nearest one."""
    grid = {c.name: c for c in task.conditions()}
    if not isinstance(name, str) or name not in grid:
        raise unknown(field, "condition", name, grid)
    return grid[name]
