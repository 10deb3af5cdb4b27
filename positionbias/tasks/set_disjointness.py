"""Set disjointness: two lists share one element, which must be named."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters
from positionbias.tasks.sampling import distinct

Sizes = tuple[tuple[int, ...], ...]  # pairs (|A|, |B|)

MOST_TOKENS = 65536  # of the vocabulary
MOST_PAIRS = 256  # of a mixture
PREFIX, SEPARATOR, QUERY = 1, 2, 3  # tokens; 0 stands where there is nothing
ORDINARY = 4  # the first token that lists may hold
PADDING_ROLE, SEPARATOR_ROLE, FIRST_ROLE, SECOND_ROLE, QUERY_ROLE = range(5)
PARTS = 8  # of the second list, on the evidence axis


def _both_ways(*pairs: tuple[int, int]) -> Sizes:
    return tuple(order for pair in pairs for order in (pair, pair[::-1]))


TRAIN = _both_ways((4, 16), (8, 32), (64, 16), (4, 128), (16, 256), (4, 256))
TEST = _both_ways(
    *((1, 32), (4, 32), (4, 128), (16, 256), (4, 256), (16, 512), (4, 512), (8, 768), (16, 768), (4, 768)),
)


@member("tasks", "set_disjointness")
@dataclasses.dataclass(frozen=True)
class SetDisjointness(Task):
    """Name the one element that two lists share (Arora et al. 2024, "Just read twice", arXiv 2407.05483).

    A and B are filled with distinct ordinary tokens, and a uniform place of B is overwritten with a uniform element of
    A. The paper draws A from one half of the shuffled vocabulary and B from the other, which is the same as long as
    they fit. A model that reads in order must keep A until B comes, so a small state favours the short list first: the
    task is about what is stored, and how soon.

    `train` and `test` are mixtures of sizes [|A|, |B|], each pair equally likely; 'paper' is the paper's, and test=[]
    leaves that condition out, as do longer contexts for which there are too few tokens. Shorter examples are padded on
    the left, the last row answers. `repeats` shows the lists that many times before it answers (JRT-Prompt). Every
    example is fresh, where the paper trains on 20,000 a pair.

    One sample of `set_disjointness(train=[[5, 2], [2, 4]], test=[[2, 8]], vocabulary=24)`:

        input    _ A: p e B: t d e f ?
        target   . .  . . .  . . . . e

    One sample of `set_disjointness(train=[[1, 3], [2, 3]], test=[], vocabulary=24, repeats=2)`:

        input    A: n b B: s i b A: n b B: s i b ?
        target   .  . . .  . . . .  . . .  . . . b

    Curves: the query axis is the pair of sizes, as numbered in its mixture. The evidence axis is the place of the
    common element in B, in eighths of B whatever its size: place i of m is the share i/m to (i+1)/m, and the slot is
    the eighth of a uniform point in it, so that every eighth has the same mixture of sizes. `order` is 0 for the short
    list first, 1 for the long one; -1 if they are equally long or one has a single element, which takes no search.
    The gap compares like with like if the mixture has each pair both ways.

    Segments are the lists with their marks, a new one each time a list is shown. Shown once, the lists may change
    places: the first is then marked as A and `order` is told anew, but the pair of sizes stays the one that was drawn,
    and the eighth is that of the middle of the place. Vocabulary: 4 specials (one unused), then the ordinary tokens.
    """

    train: Literal["paper"] | tuple[tuple[int, ...], ...] = "paper"
    test: Literal["paper"] | tuple[tuple[int, ...], ...] = "paper"
    vocabulary: int = 2048
    repeats: int = 1

    shared_tokens = False
    query_axis = "pair of sizes"
    evidence_axis = "eighth of the second list"

    def __post_init__(self) -> None:
        size = self.vocabulary
        what = f"a whole number from {ORDINARY + 2} to {MOST_TOKENS}"
        require(ORDINARY + 2 <= size <= MOST_TOKENS, "vocabulary", size, what)
        require(1 <= self.repeats <= LONGEST, "repeats", self.repeats, f"a whole number from 1 to {LONGEST}")
        for name, pairs in self._mixtures.items():
            fewest = 1 if name == "train" else 0
            require(fewest <= len(pairs) <= MOST_PAIRS, name, pairs, f"{fewest} to {MOST_PAIRS} pairs [|A|, |B|]")
            for pair in pairs:
                self._check(pair, f"{name} (the paper's)" if getattr(self, name) == "paper" else name)

    def _check(self, pair: tuple[int, ...], name: str) -> None:
        value, ordinary = list(pair), self.vocabulary - ORDINARY
        require(len(pair) == 2, name, value, "pairs [|A|, |B|]")
        limits = (
            f"|A| and |B| from 1, at most {ordinary} together, the ordinary tokens of vocabulary = {self.vocabulary}"
        )
        require(min(pair) >= 1 and sum(pair) <= ordinary, name, value, limits)
        what = f"at most {LONGEST} tokens with repeats = {self.repeats}, (|A| + |B| + 2) * repeats + 1"
        require(self._size(pair) <= LONGEST, name, value, what)

    @property
    def _mixtures(self) -> dict[str, Sizes]:
        return {
            "train": TRAIN if isinstance(self.train, str) else self.train,
            "test": TEST if isinstance(self.test, str) else self.test,
        }

    def _size(self, pair: tuple[int, ...]) -> int:
        """Tokens of an example, without padding."""
        return self.repeats * (sum(pair) + 2) + 1

    # ---- static

    @property
    def movable(self) -> bool:  # type: ignore[override]
        """Shown again and again, they come in turn."""
        return self.repeats == 1

    @property
    def input(self) -> Size:
        return Size("tokens", self.vocabulary)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        return tuple(Condition(name, (("pairs", pairs),)) for name, pairs in self._mixtures.items() if pairs)

    def stretched(self, factor: int) -> SetDisjointness:
        train, test = (
            tuple((factor * first, factor * second) for first, second in self._mixtures[name])
            for name in ("train", "test")
        )
        if max(map(sum, test), default=0) > self.vocabulary - ORDINARY:
            test = ()
        return dataclasses.replace(self, train=train, test=test)

    def length(self, condition: Condition) -> int:
        return max(self._size(pair) for pair in condition["pairs"])

    def context_length(self, condition: Condition) -> int:
        return self.length(condition) - 1

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([self.length(condition) - 1])

    def segments(self, condition: Condition) -> int:
        return 2 * self.repeats

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        count = len(condition["pairs"])
        return {"query": np.full(count, 1 / count), "evidence": np.full(PARTS, 1 / PARTS)}

    def word(self, token: int) -> str:
        return ("-", "A:", "B:", "?")[token] if token < ORDINARY else letters(token - ORDINARY)

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        pair_key, element_key, first_key, second_key = jax.random.split(key, 4)
        pairs, length = np.array(condition["pairs"], np.int32), self.length(condition)
        pair = jax.random.randint(pair_key, (1,), 0, len(pairs), jnp.int32)
        first, second = jnp.asarray(pairs)[pair[0]]

        elements = ORDINARY + distinct(element_key, int(pairs.sum(axis=1).max()), self.vocabulary - ORDINARY)
        in_first = jax.random.randint(first_key, (), 0, first, jnp.int32)
        # Of PARTS * second points, PARTS fall on each place and `second` on each part.
        point = jax.random.randint(second_key, (1,), 0, PARTS * second, jnp.int32)
        in_second, part = point[0] // PARTS, point // second
        common = elements[in_first]
        elements = elements.at[first + in_second].set(common)

        turn = first + second + 2  # tokens each time the lists are shown
        padding = length - self.repeats * turn - 1
        step = jnp.arange(length, dtype=jnp.int32) - padding
        place, last = step % turn, step == self.repeats * turn
        role = jnp.where(place <= first, FIRST_ROLE, SECOND_ROLE)
        role = jnp.where((place == 0) | (place == first + 1), SEPARATOR_ROLE, role)
        segment = jnp.where(last | (step < 0), 0, 2 * (step // turn) + 1 + (place > first))
        role = jnp.where(last, QUERY_ROLE, jnp.where(step < 0, PADDING_ROLE, role))
        special = jnp.where(place == 0, PREFIX, SEPARATOR)
        listed = elements[jnp.clip(place - 1 - (place > first), 0, elements.size - 1)]
        inputs = jnp.select(
            [role == PADDING_ROLE, role == SEPARATOR_ROLE, role == QUERY_ROLE], [0, special, QUERY], listed
        )
        tokens = self.tokens(condition)._replace(
            position=jnp.maximum(step, 0),
            segment=segment,
            role=role,
            valid=step >= 0,
        )

        places = jnp.stack([1 + in_first, first + 2 + in_second])
        evidence = padding + turn * jnp.arange(self.repeats, dtype=jnp.int32)[:, None] + places
        nothing, answer = jnp.zeros(length, jnp.int32), jnp.full(1, length - 1, jnp.int32)
        return Batch(
            inputs=inputs.astype(jnp.int32),
            targets=nothing.at[-1].set(common),
            weights=nothing.astype(jnp.float32).at[-1].set(1.0),
            tokens=tokens,
            query=answer,
            evidence=evidence.reshape(1, -1),
            order=_order(first, second)[None],
            distance=answer - evidence[-1, -1],
            n_distractors=(first + second - 2)[None],
            source=jnp.full(1, -1, jnp.int32),
            query_slot=pair,
            evidence_slot=part,
        )

    def after_move(self, example: Batch) -> Batch:
        role = example.tokens.role
        is_first, is_second = role == FIRST_ROLE, role == SECOND_ROLE
        turned = jnp.argmax(is_second) < jnp.argmax(is_first)
        first, second = (jnp.where(turned, *pair) for pair in ((is_second, is_first), (is_first, is_second)))
        evidence = jnp.sort(example.evidence, axis=-1)
        size = jnp.sum(second, dtype=jnp.int32)
        place = evidence[:, -1] - jnp.argmax(second).astype(jnp.int32)
        marks = turned & (role == SEPARATOR_ROLE)
        return example._replace(
            inputs=jnp.where(marks, PREFIX + SEPARATOR - example.inputs, example.inputs),
            tokens=example.tokens._replace(role=jnp.where(first, FIRST_ROLE, jnp.where(second, SECOND_ROLE, role))),
            evidence=evidence,
            order=_order(jnp.sum(first, dtype=jnp.int32), size)[None],
            distance=example.query - evidence[:, -1],
            evidence_slot=jnp.where(turned, PARTS * (2 * place + 1) // (2 * size), example.evidence_slot),
        )

    # ---- judged

    def _lists(self, example: Batch, visible: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Of A and of B: its size, and per answer which tokens are seen in it bool[A, V]."""
        seen = visible[example.query]
        nowhere = jnp.zeros((len(seen), self.vocabulary), bool)
        found = []
        for role in (FIRST_ROLE, SECOND_ROLE):
            member = example.tokens.role == role
            found.append((jnp.sum(member) // self.repeats, nowhere.at[:, example.inputs].max(seen & member)))
        return found

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for an observer who knows the layout (where each list stands), as masks and position schemes do.

        An element seen in both lists is the answer. Else every pair of places that are not both seen is equally likely
        to hold it: an element seen in one list is the answer for each hidden place of the other. To name any other
        token pays only where no element is seen.
        """
        (first, in_first), (second, in_second) = self._lists(example, visible)
        known = jnp.any(in_first & in_second, axis=-1)
        seen_first, seen_second = jnp.sum(in_first, axis=-1), jnp.sum(in_second, axis=-1)
        of_first = jnp.where(seen_first > 0, second - seen_second, 0)
        of_second = jnp.where(seen_second > 0, first - seen_first, 0)
        pairs = jnp.maximum(first * second - seen_first * seen_second, 1)
        named = jnp.maximum(of_first, of_second) / pairs
        blind = 1 / (self.vocabulary - ORDINARY)
        return jnp.where(known, 1.0, jnp.where(seen_first + seen_second > 0, named, blind))

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance: an element of the shortest list seen; majority: any token; nearest: the last element seen.

        order_free, the element seen most often, is right wherever both copies are seen: the answer is the one token
        that stands in the lists twice. What order costs shows against the ceiling, what is learned against chance.
        """
        target = example.targets[example.query]
        majority = jnp.full(target.shape, 1 / (self.vocabulary - ORDINARY))
        chance = majority
        for size, tokens in self._lists(example, visible):
            chance = jnp.maximum(chance, jnp.where(jnp.any(tokens, axis=-1), 1 / size, 0.0))
        role = example.tokens.role
        shown = visible[example.query] & ((role == FIRST_ROLE) | (role == SECOND_ROLE))  # [A, T]
        last = jnp.max(jnp.where(shown, jnp.arange(len(role)), -1), axis=-1)
        nearest = jnp.where(last < 0, majority, (example.inputs[last] == target).astype(jnp.float32))
        count = jnp.zeros((len(target), self.vocabulary), jnp.int32).at[:, example.inputs].add(shown)[:, ORDINARY:]
        most = count == jnp.max(count, axis=-1, keepdims=True)
        order_free = jnp.take_along_axis(most, target[:, None] - ORDINARY, axis=-1)[:, 0] / jnp.sum(most, axis=-1)
        return {"chance": chance, "majority": majority, "nearest": nearest, "order_free": order_free}


def _order(first: Int[jax.Array, ""], second: Int[jax.Array, ""]) -> Int[jax.Array, ""]:
    """Of lists of these sizes: 0 for the short one first, 1 for the long one, -1 where neither is told."""
    unranked = (first == second) | (jnp.minimum(first, second) == 1)
    return jnp.where(unranked, -1, first > second).astype(jnp.int32)
