"""A long list in which some words are common: name them. What counts is how often, and not where."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters
from positionbias.tasks.sampling import distinct, permutation
from positionbias.tokens import Tokens, sequential

MOST_COMMON = 64  # the ceiling goes through how many of them are seen
MOST_WORDS = 65536
MOST_WEIGHED = 65536  # steps of the ceiling for one answer of one example, times its answers
START = 0
FIRST_WORD = 1
PARTS = 8  # of the list, on the evidence axis
LIST_ROLE = 0
ANSWER_ROLES = {"shuffled": 1, "early": 2, "late": 3}  # where the common words stand is known


@member("tasks", "common_words")
@dataclasses.dataclass(frozen=True)
class CommonWords(Task):
    """Common words extraction (Hsieh et al. 2024, "RULER", arXiv 2404.06654), in symbols.

    A list holds `common` words `often` times each and `others` words `seldom` times each, in uniformly random order;
    then the common ones are to be named. The paper's are 10 words 30 times, the others 3 times, as many as fit the
    length (6 and 1 times below 4k tokens). It counts words found in any order. Here the answer is in the order of the
    word's ids, so that each row has one right answer, and reads the answers before its own as inputs (teacher forcing);
    the baseline `any_common` counts right and knows nothing of that order.

    One sample of `common_words(common=2, often=4, others=3, seldom=1, vocabulary=12)`:

        input    c c i a c a a c h a l ? a
        target   . . . . . . . . . . . a c

    Attention with equal weights counts, so no order has to be read: the best guesser who ignores the order of the list
    is the ceiling, and how far a model stays below it, and where, is what is measured.

    Conditions: "shuffled", the paper's; "early" has all copies of the common words before the others, "late" after
    them, in items that are paired. All three hold common and other words in the same numbers: only positions differ.

    Every word of the list is a segment. The evidence of an answer is the places of all its copies, in no order; the
    evidence axis has the eighth of the list in which the last of them in `evidence`, one drawn uniformly, stands.
    Vocabulary: the token that starts the answer, then words.
    """

    common: int = 10
    often: int = 6
    others: int = 60
    seldom: int = 1
    vocabulary: int = 256

    movable = True
    query_axis = "common words named before"
    evidence_axis = "eighth of the list that holds a copy"

    def __post_init__(self) -> None:
        require(1 <= self.common <= MOST_COMMON, "common", self.common, f"a whole number from 1 to {MOST_COMMON}")
        require(1 <= self.others <= MOST_WORDS, "others", self.others, f"a whole number from 1 to {MOST_WORDS}")
        require(1 <= self.seldom <= LONGEST, "seldom", self.seldom, f"a whole number from 1 to {LONGEST}")
        what = f"a whole number from {self.seldom + 1}, more than seldom, to {LONGEST}"
        require(self.seldom < self.often <= LONGEST, "often", self.often, what)
        what = f"a whole number from {self.common + self.others}, common + others, to {MOST_WORDS}"
        require(self.common + self.others <= self.vocabulary <= MOST_WORDS, "vocabulary", self.vocabulary, what)
        what = f"at most {LONGEST} tokens in all"
        size = self._listed + self.common
        require(size <= LONGEST, "common * (often + 1) + others * seldom", size, what)

    @property
    def _listed(self) -> int:
        """Tokens of the list."""
        return self.common * self.often + self.others * self.seldom

    # ---- static

    @property
    def input(self) -> Size:
        return Size("tokens", FIRST_WORD + self.vocabulary)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        shuffled = Condition("shuffled", (("place", "shuffled"),))
        return (shuffled, *(Condition(place, (("place", place),), items="apart") for place in ("early", "late")))

    def stretched(self, factor: int) -> CommonWords:
        return dataclasses.replace(self, often=factor * self.often, seldom=factor * self.seldom)

    def length(self, condition: Condition) -> int:
        return self._listed + self.common

    def context_length(self, condition: Condition) -> int:
        return self._listed

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return self._listed + np.arange(self.common)

    def tokens(self, condition: Condition) -> Tokens:
        row = np.arange(self.length(condition), dtype=np.int32)
        asks = row >= self._listed
        role = np.where(asks, ANSWER_ROLES[condition["place"]], LIST_ROLE).astype(np.int32)
        return sequential(len(row), role=role, segment=np.where(asks, 0, row + 1).astype(np.int32))

    def leaks(self, condition: Condition) -> Bool[np.ndarray, "T T"]:
        found = super().leaks(condition)
        rows = self.query_rows(condition)
        found[rows[:-1], rows[1:]] = True
        return found

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        copies = self.common * self.often
        place = {
            "shuffled": np.arange(self._listed),
            "early": np.arange(copies),
            "late": np.arange(self._listed - copies, self._listed),
        }[condition["place"]]
        part = np.bincount(PARTS * place // self._listed, minlength=PARTS)
        return {"query": np.full(self.common, 1 / self.common), "evidence": part / part.sum()}

    def word(self, token: int) -> str:
        return "?" if token == START else letters(token - FIRST_WORD)

    # ---- sampled

    def _places(self, key: Key[jax.Array, ""], condition: Condition) -> tuple[jax.Array, jax.Array]:
        """Where the copies of the common words, and of the others, stand."""
        copies, place = self.common * self.often, condition["place"]
        if place == "shuffled":
            both = permutation(key, self._listed)
            return both[:copies], both[copies:]
        one, other = jax.random.split(key)
        common, others = permutation(one, copies), permutation(other, self._listed - copies)
        return (common, others + copies) if place == "early" else (common + self._listed - copies, others)

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        word_key, place_key = jax.random.split(key)
        words = FIRST_WORD + distinct(word_key, self.common + self.others, self.vocabulary)
        common, others = words[: self.common], words[self.common :]
        rank = jnp.sum(common[None, :] < common[:, None], axis=-1)
        common = jnp.zeros_like(common).at[rank].set(common)
        places, elsewhere = self._places(place_key, condition)
        length = self.length(condition)
        inputs = jnp.zeros(length, jnp.int32).at[places].set(jnp.repeat(common, self.often))
        inputs = inputs.at[elsewhere].set(jnp.repeat(others, self.seldom))
        query = jnp.arange(self._listed, length, dtype=jnp.int32)
        zero, number = jnp.zeros(self.common, jnp.int32), jnp.arange(self.common, dtype=jnp.int32)
        evidence = places.reshape(self.common, self.often)
        return self._placed(
            Batch(
                inputs=inputs.at[query[1:]].set(common[:-1]),
                targets=jnp.zeros(length, jnp.int32).at[query].set(common),
                weights=jnp.zeros(length).at[query].set(1.0),
                tokens=self.tokens(condition),
                query=query,
                evidence=evidence,
                order=zero,
                distance=query - jnp.max(evidence, axis=-1),
                n_distractors=zero + self.common + self.others - 1,
                source=jnp.where(number < self.common - 1, query + 1, -1),
                query_slot=number,
                evidence_slot=zero,
            )
        )

    def after_move(self, example: Batch) -> Batch:
        tokens = example.tokens  # words that were apart may stand anywhere now
        role = jnp.where(tokens.role == LIST_ROLE, LIST_ROLE, ANSWER_ROLES["shuffled"])
        return self._placed(example._replace(tokens=tokens._replace(role=role)))

    def _placed(self, example: Batch) -> Batch:
        return example._replace(
            distance=example.query - jnp.max(example.evidence, axis=-1),
            evidence_slot=PARTS * example.evidence[:, -1] // self._listed,
        )

    # ---- judged

    def _seen(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> tuple[jax.Array, jax.Array]:
        """How often each answer sees each word in the list, i32[A, W], and which answers it is told, bool[A, A]."""
        seen = visible[example.query]
        listed = example.inputs[: self._listed] - FIRST_WORD
        count = jnp.zeros((self.common, self.vocabulary), jnp.int32).at[:, listed].add(seen[:, : self._listed])
        return count, jnp.append(seen[:, self._listed + 1 :], jnp.zeros((self.common, 1), bool), axis=1)

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for a reader who knows how often words occur, and if the common ones come first, last or anywhere.

        What it sees is the likelier under a set of common words the more ways there are to pick it from their copies
        and the others'. All sets are weighed if vocabulary * common * (common + 1)^2 is at most MOST_WEIGHED; otherwise
        the ceiling is 1 where all common words are seen to be common, or the answer is told, and nan elsewhere.
        """
        count, told = self._seen(example, visible)
        sure = (jnp.sum(count > self.seldom, axis=-1) == self.common) | jnp.diagonal(told)
        if self.vocabulary * self.common * (self.common + 1) ** 2 > MOST_WEIGHED:
            return jnp.where(sure, 1.0, jnp.nan)
        copies, row = self.common * self.often, jnp.arange(self._listed)
        role = jnp.asarray(example.tokens.role)[example.query[0]]
        early, late = role == ANSWER_ROLES["early"], role == ANSWER_ROLES["late"]
        block = jnp.where(early, row < copies, row >= self._listed - copies)  # of the common words, if they are apart
        nothing = jnp.zeros(self.vocabulary, bool)
        listed, seen = example.inputs[: self._listed] - FIRST_WORD, visible[example.query, : self._listed]
        split = (early | late) & seen
        is_common = jax.vmap(lambda known: nothing.at[listed].max(known))(split & block)
        is_other = jax.vmap(lambda known: nothing.at[listed].max(known))(split & ~block)
        log_common = jnp.where(is_other, -jnp.inf, _log_ways(self.often, count))
        log_other = jnp.where(is_common, -jnp.inf, _log_ways(self.seldom, count))
        answers = example.targets[example.query] - FIRST_WORD
        weigh = jax.vmap(self._posterior, in_axes=(0, 0, 0, 0, None, 0))
        found = weigh(log_common, log_other, count == 0, told, answers, jnp.arange(self.common))
        return jnp.where(sure, 1.0, jnp.max(found, axis=-1))

    def _posterior(
        self,
        log_common: Float[jax.Array, "W"],
        log_other: Float[jax.Array, "W"],
        hidden: Bool[jax.Array, "W"],
        told: Bool[jax.Array, "A"],
        answers: Int[jax.Array, "A"],
        number: Int[jax.Array, ""],
    ) -> Float[jax.Array, "W"]:
        """The probability of every word to be answer `number`.

        Walks over the words by id, from either end, carry the log weight of all ways to have come there, by how many
        words were common so far and how many of these the list did not show: f32[common + 1, common + 1].
        """
        # An answer that is told is in its place, and nowhere else.
        named = told & (answers == jnp.arange(self.vocabulary)[:, None])  # [W, A]
        fits = jnp.where(told, named, ~jnp.any(named, axis=-1, keepdims=True))
        common = jnp.where(fits, log_common[:, None], -jnp.inf)
        other = jnp.where(jnp.any(named, axis=-1), -jnp.inf, log_other)
        none = jnp.full((self.common + 1, self.common + 1), -jnp.inf)

        def walk(common: jax.Array, other: jax.Array, hidden: jax.Array, taken: jax.Array) -> jax.Array:
            """Per word, the log weights [W, common + 1] of having met `taken` common words before it."""

            def step(table: jax.Array, word: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
                as_common, as_other, is_hidden = word
                met = none.at[1:].set(table[:-1] + as_common[:, None])
                met = jnp.where(is_hidden, none.at[:, 1:].set(met[:, :-1]), met)
                return jnp.logaddexp(table + as_other, met), table[taken]

            return jax.lax.scan(step, none.at[0, 0].set(0.0), (common, other, hidden))[1]

        before = walk(common, other, hidden, number)
        after = walk(common[::-1, ::-1], other[::-1], hidden[::-1], self.common - 1 - number)[::-1]
        # The words that the list did not show and that are not common: which of them are in it.
        unseen = jnp.arange(self.common + 1)[:, None] + jnp.arange(self.common + 1) + hidden[:, None, None]
        shown = self.vocabulary - jnp.sum(hidden)
        rest, left = self.vocabulary - shown - unseen, self.others - shown + self.common - unseen
        ways = _log_ways(rest, left) - gammaln(jnp.maximum(left, 0) + 1.0)
        weight = before[:, :, None] + after[:, None, :] + jnp.where(left < 0, -jnp.inf, ways)
        weight = jax.nn.logsumexp(weight, axis=(1, 2)) + common[:, number]
        return jnp.exp(weight - jax.nn.logsumexp(weight))

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance: any word; majority: the likeliest for its place; nearest: the last of the list that is seen.

        order_free: the words seen most often, in the order of their ids; with the whole list in sight it is right, and
        so the ceiling. any_common: one of the words seen too often for the others and not told yet, in no order.
        """
        count, told = self._seen(example, visible)
        target = example.targets[example.query] - FIRST_WORD
        number, word = jnp.arange(self.common), jnp.arange(self.vocabulary)
        chance = jnp.full(self.common, 1 / self.vocabulary)
        likeliest = jnp.minimum(number * self.vocabulary // max(self.common - 1, 1), self.vocabulary - 1)
        seen = visible[example.query, : self._listed]
        last = jnp.max(jnp.where(seen, jnp.arange(self._listed), -1), axis=-1)
        most = jax.lax.top_k(count, self.common)[1]
        rank = jnp.sum(most[:, None, :] < most[:, :, None], axis=-1)
        counted = jnp.sum(jnp.where(rank == number[:, None], most, 0), axis=-1)
        free = (count > self.seldom) & ~jnp.any(told[:, :, None] & (target[:, None] == word), axis=1)
        hits = jnp.take_along_axis(free, target[:, None], axis=-1)[:, 0] / jnp.maximum(jnp.sum(free, axis=-1), 1)
        right = jnp.float32
        return {
            "chance": chance,
            "majority": (likeliest == target).astype(right) if self.common > 1 else chance,
            "nearest": jnp.where(last < 0, chance, (example.inputs[last] - FIRST_WORD == target).astype(right)),
            "order_free": jnp.where(last < 0, chance, (counted == target).astype(right)),
            "any_common": jnp.where(jnp.any(free, axis=-1), hits, chance),
        }


def _log_ways(size: int | jax.Array, count: Int[jax.Array, "*S"]) -> Float[jax.Array, "*S"]:
    """The logarithm of the number of ways to pick `count` of `size` things one after another."""
    left = size - count
    return jnp.where(left < 0, -jnp.inf, gammaln(size + 1.0) - gammaln(jnp.maximum(left, 0) + 1.0))
