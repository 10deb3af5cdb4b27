"""Pairs told one way and asked the other: from the weights, where that fails, or from the prompt."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task
from positionbias.tasks.sampling import distinct
from positionbias.tokens import Tokens, sequential

MOST_NAMES = 32767  # of each kind; with both relations there are at most 65536 tokens
RELATIONS = 2  # R and R^-1
SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE, ASKED_ROLE, NAMED_ROLE, BEGIN_ROLE = range(6)


class _Reversal(Task):
    """What both forms share: R and R^-1, then names of the first kind, a, and as many of the second, b."""

    query_axis = "direction asked (0 forward, 1 backward)"

    @property
    def _names(self) -> int:
        """Names of each kind."""
        raise NotImplementedError

    @property
    def input(self) -> Size:
        return Size("tokens", RELATIONS + 2 * self._names)

    @property
    def output(self) -> Size:
        return self.input

    def word(self, token: int) -> str:
        if token < RELATIONS:
            return ("R", "R^-1")[token]
        kind, number = divmod(token - RELATIONS, self._names)
        return f"{'ab'[kind]}{number}"

    def _token(self, kind: jax.Array, number: jax.Array) -> jax.Array:
        return RELATIONS + kind * self._names + number


@member("tasks", "reversal")
@dataclasses.dataclass(frozen=True)
class Reversal(_Reversal):
    """The reversal curse (Berglund et al. 2023, arXiv 2309.12288), in symbols: learn "A is B", be asked who B is.

    Training states all `pairs` forward, a_i R b_i, and the first `both` of them backward too, b_i R^-1 a_i, every
    statement equally often. The row of the relation answers: what it is asked for follows it, as in any text, for
    objectives that hide or reorder tokens; a mask that lets the row see it is refused where the objective is
    next_token. Conditions: "forward" asks all pairs as stated, "backward" the pairs stated both ways (not with both=0),
    and "held_out" asks backward for the others, which were told in one direction alone.

    One sample of `reversal(pairs=6, both=3)`:

        input    a0 R  b0
        target   .  b0 .

    One sample of `reversal(pairs=6, both=3)`, condition held_out:

        input    b3 R^-1 a3
        target   .  a3   .

    Pair i is a_i and b_i for every replica: names mean nothing to a model, so pairs drawn at random would be the same
    task. Vocabulary: R, R^-1, the names a, the names b. With `begin` every statement begins with a token of its own,
    the last of the vocabulary: for objectives that have a row say the input behind it, whichever that is.
    """

    pairs: int = 32
    both: int = 16
    begin: bool = False

    evidence_axis = "place of the name asked about"
    no_baselines: ClassVar[dict[str, str]] = {"nearest": "no other name stands in front of the answer"}

    def __post_init__(self) -> None:
        require(2 <= self.pairs <= MOST_NAMES, "pairs", self.pairs, f"a whole number from 2 to {MOST_NAMES}")
        what = f"a whole number from 0 to {self.pairs - 1}, below pairs = {self.pairs}, for some must be held out"
        require(0 <= self.both < self.pairs, "both", self.both, what)

    @property
    def _names(self) -> int:
        return self.pairs

    @property
    def input(self) -> Size:
        return Size("tokens", super().input.size + self.begin)

    def word(self, token: int) -> str:
        return "|" if token == super().input.size else super().word(token)

    # ---- static

    def conditions(self) -> tuple[Condition, ...]:
        """Statements are numbered: all pairs forward, then all backward; a condition draws from a range of them."""
        n, both = self.pairs, self.both
        ranges = {"train": (0, n + both), "forward": (0, n), "backward": (n, n + both), "held_out": (n + both, 2 * n)}
        return tuple(
            Condition(name, (("first", first), ("stop", stop)))
            for name, (first, stop) in ranges.items()
            if stop > first
        )

    def length(self, condition: Condition) -> int:
        return 3 + self.begin

    def context_length(self, condition: Condition) -> int:
        return 1 + self.begin

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([1 + self.begin])

    def tokens(self, condition: Condition) -> Tokens:
        role = [BEGIN_ROLE] * self.begin + [SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE]
        return sequential(len(role), role=np.array(role, np.int32))

    def leaks(self, condition: Condition) -> Bool[np.ndarray, "T T"]:
        return np.eye(3 + self.begin, k=1, dtype=bool) & (np.arange(3 + self.begin) == 1 + self.begin)[:, None]

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        first, stop = condition["first"], condition["stop"]
        forward = max(self.pairs - first, 0) / (stop - first) if stop > self.pairs else 1.0
        return {"query": np.array([forward, 1 - forward]), "evidence": np.ones(1)}

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        statement = jax.random.randint(key, (1,), condition["first"], condition["stop"], jnp.int32)
        backward, pair = statement // self.pairs, statement % self.pairs
        answer, zero, row = self._token(1 - backward, pair), jnp.zeros(1, jnp.int32), 1 + self.begin
        begin = jnp.full(self.begin, super().input.size, jnp.int32)
        return Batch(
            inputs=jnp.concatenate([begin, self._token(backward, pair), backward, answer]),
            targets=jnp.zeros(3 + self.begin, jnp.int32).at[row].set(answer[0]),
            weights=jnp.zeros(3 + self.begin).at[row].set(1.0),
            tokens=self.tokens(condition),
            query=zero + row,
            evidence=jnp.array([[row, row - 1]], jnp.int32),
            order=zero,
            distance=zero + 1,
            n_distractors=zero,
            source=zero + row + 1,
            query_slot=backward,
            evidence_slot=zero,
        )

    # ---- judged

    def _judged(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Per answer, bool[A]: the direction known, the pair known, and a question never trained."""
        name, relation, answer = (visible[example.query, self.begin + at] for at in range(3))
        pair = (example.inputs[self.begin : self.begin + 1] - RELATIONS) % self.pairs
        return name | relation | answer, name | answer, (example.query_slot == 1) & (pair >= self.both)

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for an observer that knows the pairs, whichever way they were told, and training's mixture.

        Held out, it knows that much: the pair is one of those told forward alone.
        """
        direction, pair, untrained = self._judged(example, visible)
        trained = jnp.where(example.query_slot == 1, self.both, self.pairs)
        names = jnp.where(untrained, self.pairs - self.both, jnp.where(direction, trained, self.pairs + self.both))
        return jnp.where(pair, 1.0, 1 / names)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance: any name of the kind asked for, or any at all where that is not seen; majority: any of those that
        training asks for, if there are such; order_free: only looks up.

        Nothing here depends on order, so `order_free` knows every statement as it was trained, and guesses the others.
        """
        direction, _, untrained = self._judged(example, visible)
        chance = jnp.where(direction, 1.0, 0.5) / self.pairs
        asked = jnp.where(direction, jnp.where(example.query_slot == 1, self.both, self.pairs), self.pairs + self.both)
        return {
            "chance": chance,
            "majority": jnp.where(asked > 0, ~untrained / jnp.maximum(asked, 1), chance),
            "order_free": jnp.where(untrained, chance, self.ceiling(example, visible)),
        }


@member("tasks", "reversal_in_context")
@dataclasses.dataclass(frozen=True)
class ReversalInContext(_Reversal):
    """The reversal curse's control (Berglund et al. 2023, arXiv 2309.12288): the pairs stand in the prompt.

    A prompt states `pairs` pairs forward, a R b, paired anew every time; then it gives the relation and a name of one
    of them, whose row answers: forward, R a, or backward, R^-1 b, with equal chance and for every pair alike. The name
    is last, for small models soon learn to look up the token of the row that answers, and hardly one in front of it.
    The conditions "forward" and "backward" have one direction alone.

    One sample of `reversal_in_context(pairs=3, names=6)`:

        input    a4 R b0 a0 R b1 a2 R b5 R^-1 b1
        target   .  . .  .  . .  .  . .  .    a0

    One sample of `reversal_in_context(pairs=3, names=6)`, condition forward:

        input    a4 R b0 a0 R b1 a2 R b5 R a0
        target   .  . .  .  . .  .  . .  . b1

    Segments are the pairs. `order` is the direction, for the name asked about stands before its answer or after it: the
    order gap is that of the two directions. Vocabulary: R, R^-1, `names` names a, as many b, as in `reversal`.
    """

    pairs: int = 8
    names: int = 32

    movable = True
    slots_are_segments = True
    evidence_axis = "slot of the asked pair"

    def __post_init__(self) -> None:
        most = (LONGEST - 2) // 3
        require(2 <= self.pairs <= most, "pairs", self.pairs, f"a whole number from 2 to {most}")
        what = f"a whole number from pairs = {self.pairs} to {MOST_NAMES}"
        require(self.pairs <= self.names <= MOST_NAMES, "names", self.names, what)

    @property
    def _names(self) -> int:
        return self.names

    # ---- static

    def conditions(self) -> tuple[Condition, ...]:
        directions = {"train": (0, 2), "forward": (0, 1), "backward": (1, 2)}
        return tuple(Condition(name, (("first", first), ("stop", stop))) for name, (first, stop) in directions.items())

    def stretched(self, factor: int) -> ReversalInContext:
        return dataclasses.replace(self, pairs=factor * self.pairs)

    def length(self, condition: Condition) -> int:
        return 3 * self.pairs + 2

    def context_length(self, condition: Condition) -> int:
        return 3 * self.pairs

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([3 * self.pairs + 1])

    def tokens(self, condition: Condition) -> Tokens:
        role = [SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE] * self.pairs + [ASKED_ROLE, NAMED_ROLE]
        segment = np.append(np.repeat(np.arange(1, self.pairs + 1), 3), [0, 0])
        return sequential(len(role), role=np.array(role, np.int32), segment=segment.astype(np.int32))

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        first, stop = condition["first"], condition["stop"]
        asked = np.array([first <= direction < stop for direction in range(2)]) / (stop - first)
        return {"query": asked, "evidence": np.full(self.pairs, 1 / self.pairs)}

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        first_key, second_key, slot_key, direction_key = jax.random.split(key, 4)
        numbers = [distinct(k, self.pairs, self.names) for k in (first_key, second_key)]
        names = self._token(jnp.arange(2)[:, None], jnp.stack(numbers))  # [2, pairs]: the names a, the names b
        slot = jax.random.randint(slot_key, (1,), 0, self.pairs, jnp.int32)
        backward = jax.random.randint(direction_key, (1,), condition["first"], condition["stop"], jnp.int32)

        statements = jnp.stack([names[0], jnp.zeros(self.pairs, jnp.int32), names[1]], axis=-1)
        length, zero = self.length(condition), jnp.zeros(1, jnp.int32)
        asked_at, answer_at = 3 * slot + 2 * backward, 3 * slot + 2 - 2 * backward
        return Batch(
            inputs=jnp.concatenate([statements.reshape(-1), backward, names[backward, slot]]),
            targets=jnp.zeros(length, jnp.int32).at[-1].set(names[1 - backward, slot][0]),
            weights=jnp.zeros(length).at[-1].set(1.0),
            tokens=self.tokens(condition),
            query=zero + length - 1,
            evidence=jnp.stack([asked_at, answer_at], axis=-1),
            order=backward,
            distance=length - 1 - answer_at,
            n_distractors=zero + self.pairs - 1,
            source=zero - 1,
            query_slot=backward,
            evidence_slot=slot,
        )

    # ---- judged

    def _seen(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Of every pair, bool[pairs]: the name asked about seen, the answer seen; the answers i32[pairs]; the row."""
        row, backward = visible[example.query[0]], example.query_slot[0]
        pairs, seen = example.inputs[:-2].reshape(-1, 3), row[:-2].reshape(-1, 3)
        return seen[:, 2 * backward], seen[:, 2 - 2 * backward], pairs[:, 2 - 2 * backward], row

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for an observer that knows training's mixture: where no direction is seen, both are equally likely.

        The name asked about, if it is seen, is in the pair where it is seen again, or else in any pair whose name of
        that kind is hidden; a hidden answer is any name that is seen in no pair.
        """
        key, answer, _, row = self._seen(example, visible)
        mine = jnp.arange(self.pairs) == example.evidence_slot

        def unnamed(seen: jax.Array) -> jax.Array:
            return jnp.where(jnp.any(seen), 1 / self.pairs, 1 / self.names)

        hidden = 1 / jnp.maximum(self.names - jnp.sum(answer), 1)
        loose = jnp.maximum(jnp.sum(~key), 1)
        elsewhere = jnp.maximum(jnp.any(~key & answer), jnp.sum(~key & ~answer) * hidden) / loose
        found = jnp.where(jnp.any(mine & answer), 1.0, hidden)
        named = jnp.where(jnp.any(mine & key), found, elsewhere)
        directed = jnp.where(row[-2], unnamed(answer), jnp.maximum(unnamed(answer), unnamed(key)) / 2)
        return jnp.where(row[-1], named, directed)[None]

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any name of the kind asked for, or any at all; order_free: any seen of that kind;
        nearest: the last.

        Every name of a prompt stands in one pair, so how often it is seen tells a bag of tokens nothing.
        """
        key, answer, answers, row = self._seen(example, visible)
        right = answers == example.targets[example.query[0]]
        directed = row[-1] | row[-2]
        chance = jnp.where(directed, 1.0, 0.5) / self.names
        count = jnp.sum(answer) + jnp.where(directed, 0, jnp.sum(key))
        any_seen = jnp.sum(right & answer) / jnp.maximum(count, 1)
        last = jnp.max(jnp.where(answer, jnp.arange(self.pairs), -1))
        found = {
            "chance": chance,
            "majority": chance,
            "nearest": jnp.where(directed & (last >= 0), right[last], chance),
            "order_free": jnp.where(count > 0, any_seen, chance),
        }
        return {name: value[None] for name, value in found.items()}
