"""Lists that a hidden rule rearranges: find the rule from examples, and apply it to words never seen under it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import Batch, Condition, Size, Task, letters, one_of
from positionbias.tasks.sampling import distinct
from positionbias.tokens import Tokens, sequential

SHORTEST, LONGEST_LIST = 4, 8  # words of a list; the rules of shorter ones are not all different
MOST_LISTS = 32
MOST_WORDS = 32767  # of each vocabulary
BECOMES, END, FIRST_WORD = range(3)
WORD_ROLE, MADE_ROLE, END_ROLE, ASKS_ROLE = range(4)  # ASKS_ROLE + the number of the condition, which a reader knows

# Which place of the list a rule takes the word at each place from.
RULES: dict[str, Callable[[int], list[int]]] = {
    "copy": lambda n: list(range(n)),
    "reverse": lambda n: list(range(n))[::-1],
    "rotate": lambda n: [*range(1, n), 0],
    "swap": lambda n: [n - 1, *range(1, n - 1), 0],
    "first": lambda n: [0] * n,
    "last": lambda n: [n - 1] * n,
}


@member("tasks", "rebinding")
@dataclasses.dataclass(frozen=True)
class Rebinding(Task):
    """Rebinding of a schema to new words, after Swaminathan et al. 2023 (arXiv 2307.01201), for transformers.

    A sequence is `lists` lists of `size` different words, each followed by what one rule makes of it: `copy`,
    `reverse`, `rotate` (the first word goes to the end), `swap` (first and last change places), `first` or `last` (that
    word, all along). The rule is not named. Every word that it makes is asked for, the earlier ones given, so that
    accuracy by the number of lists before tells how many demonstrations a reader needs.

    One sample of `rebinding(lists=2, vocabulary=6)`:

        input    a b c d : a b c d ; b c d a : b c d a ;
        target   . . . . a b c d . . . . . . b c d a . .

    One sample of `rebinding(lists=2, vocabulary=6)`, condition rebound:

        input    A B C D : D C B A ; B C D A : A D C B ;
        target   . . . . D C B A . . . . . . A D C B . .

    Words are of one of two vocabularies. In training the first comes under any rule and the second, half the time,
    under the first `bound` rules alone, `copy` with 1; with 0 it never comes. Conditions: "train"; "familiar", the
    first under any rule; "rebound", the second (in capitals) under the other rules, where it was never shown but in the
    lists before. What is seen under few rules teaches to stay with them: in "rebound" `bound` pulls either way.
    """

    lists: int = 4
    size: int = 4
    vocabulary: int = 16
    bound: int = 1

    movable = True
    query_axis = "lists before"
    evidence_axis = "place of the word in its list"

    def __post_init__(self) -> None:
        require(1 <= self.lists <= MOST_LISTS, "lists", self.lists, f"a whole number from 1 to {MOST_LISTS}")
        what = f"a whole number from {SHORTEST} to {LONGEST_LIST}"
        require(SHORTEST <= self.size <= LONGEST_LIST, "size", self.size, what)
        what = f"a whole number from size = {self.size} to {MOST_WORDS}"
        require(self.size <= self.vocabulary <= MOST_WORDS, "vocabulary", self.vocabulary, what)
        most = len(RULES) - 1
        require(0 <= self.bound <= most, "bound", self.bound, f"a whole number from 0 to {most}, some rule being left")

    # ---- static

    @property
    def _span(self) -> int:
        """Rows of a list and of what becomes of it."""
        return 2 * self.size + 2

    @property
    def _rules(self) -> Int[np.ndarray, "R N"]:
        return np.array([rule(self.size) for rule in RULES.values()], np.int32)

    @property
    def input(self) -> Size:
        return Size("tokens", FIRST_WORD + 2 * self.vocabulary)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        """The probability of every rule under the first vocabulary, and under the second."""
        every, number = np.full(len(RULES), 1 / len(RULES)), np.arange(len(RULES))
        bound, free = (number < self.bound) / max(self.bound, 1), (number >= self.bound) / (len(RULES) - self.bound)
        shares = {
            "train": (every / 2, bound / 2) if self.bound else (every, bound),
            "familiar": (every, 0 * every),
            "rebound": (0 * every, free),
        }
        return tuple(
            Condition(name, (("number", number), ("shares", tuple(map(tuple, np.stack(share).tolist())))))
            for number, (name, share) in enumerate(shares.items())
        )

    def stretched(self, factor: int) -> Rebinding:
        return dataclasses.replace(self, lists=factor * self.lists)

    def length(self, condition: Condition) -> int:
        return self.lists * self._span

    def context_length(self, condition: Condition) -> int:
        return 0

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        inside = self.size + np.arange(self.size)
        return (self._span * np.arange(self.lists)[:, None] + inside).reshape(-1)

    def tokens(self, condition: Condition) -> Tokens:
        one = [WORD_ROLE] * self.size + [ASKS_ROLE + condition["number"]] + [MADE_ROLE] * self.size + [END_ROLE]
        segment = np.repeat(np.arange(1, self.lists + 1, dtype=np.int32), self._span)
        return sequential(len(segment), role=np.array(one * self.lists, np.int32), segment=segment)

    def leaks(self, condition: Condition) -> Bool[np.ndarray, "T T"]:
        found = super().leaks(condition)
        rows = self.query_rows(condition)
        found[rows, rows + 1] = True
        return found

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        share = np.sum(condition["shares"], axis=0)  # of every rule
        taken = np.stack([np.bincount(rule, minlength=self.size) for rule in self._rules])
        return {"query": np.full(self.lists, 1 / self.lists), "evidence": share @ taken / self.size}

    def word(self, token: int) -> str:
        if token < FIRST_WORD:
            return ":;"[token]
        new, number = divmod(token - FIRST_WORD, self.vocabulary)
        return letters(number).upper() if new else letters(number)

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        rule_key, word_key = jax.random.split(key)
        shares = np.array(condition["shares"]).reshape(-1)
        drawn = jnp.searchsorted(np.cumsum(shares)[:-1], jax.random.uniform(rule_key), side="right")
        new, rule = jnp.divmod(drawn, len(RULES))
        number = jax.vmap(lambda one: distinct(one, self.size, self.vocabulary))(jax.random.split(word_key, self.lists))
        words = (FIRST_WORD + new * self.vocabulary + number).astype(jnp.int32)
        source = jnp.asarray(self._rules)[rule]
        made = words[:, source]
        mark = jnp.full((self.lists, 1), 1, jnp.int32)
        inputs = jnp.concatenate([words, BECOMES * mark, made, END * mark], axis=-1).reshape(-1)

        rows = jnp.asarray(self.query_rows(condition), jnp.int32)
        at, zero = jnp.tile(source, self.lists), jnp.zeros_like(rows)
        evidence = self._span * (rows // self._span) + at
        return Batch(
            inputs=inputs,
            targets=jnp.zeros_like(inputs).at[rows].set(made.reshape(-1)),
            weights=jnp.zeros(inputs.shape).at[rows].set(1.0),
            tokens=self.tokens(condition),
            query=rows,
            evidence=evidence[:, None],
            order=zero,
            distance=rows - evidence,
            n_distractors=zero + self.size - 1,
            source=rows + 1,
            query_slot=rows // self._span,
            evidence_slot=at,
        )

    def after_move(self, example: Batch) -> Batch:
        return example._replace(query_slot=example.query // self._span)

    # ---- judged

    def _read(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The words of every list and what was made of them i32[L, 2N], and which of them an answer sees [A, L, 2N]."""
        words = np.delete(np.arange(self._span), [self.size, self._span - 1])
        seen = visible[example.query].reshape(-1, self.lists, self._span)[..., words]
        return example.inputs.reshape(self.lists, self._span)[:, words], seen

    def _shares(self, example: Batch) -> Float[jax.Array, "2 R"]:
        """The probability of every rule under either vocabulary in the example's condition, which its roles tell."""
        asks = example.query[0] - example.query[0] % self._span + self.size
        number = jnp.asarray(example.tokens.role)[asks] - ASKS_ROLE
        return jnp.asarray([condition["shares"] for condition in self.conditions()])[number]

    def _prior(self, example: Batch, words: jax.Array, seen: Bool[jax.Array, "A L 2N"]) -> Float[jax.Array, "A R"]:
        """How likely every rule is, up to a factor, as soon as a word is seen that tells which vocabulary it is."""
        shares, new = self._shares(example), (words[0, 0] >= FIRST_WORD + self.vocabulary).astype(jnp.int32)
        return jnp.where(jnp.any(seen, axis=(1, 2))[:, None], shares[new], jnp.sum(shares, axis=0))

    def _choices(self, example: Batch, seen: Bool[jax.Array, "A L 2N"]) -> Int[jax.Array, "A"]:
        """How many words there are: those of one vocabulary, as soon as a word is seen that tells which."""
        vocabularies = jnp.sum(jnp.any(self._shares(example) > 0, axis=-1))
        return self.vocabulary * jnp.where(jnp.any(seen, axis=(1, 2)), 1, vocabularies)

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for a reader who knows rules and layout, and which rules the condition has with which vocabulary.

        A rule is possible if of any two words that are seen of a list, and made of it, they are the same where it takes
        them from one place, and different elsewhere. All possible rules explain what is seen equally well.
        """
        words, seen = self._read(example, visible)
        places = jnp.asarray(np.concatenate([np.tile(np.arange(self.size), (len(RULES), 1)), self._rules], axis=1))
        one_place = places[:, :, None] == places[:, None, :]  # [R, 2N, 2N]
        one_word = words[:, :, None] == words[:, None, :]  # [L, 2N, 2N]
        clash = (one_place[:, None] != one_word).astype(jnp.float32)  # [R, L, 2N, 2N]
        shown = seen.astype(jnp.float32)
        possible = jnp.einsum("ale,rlef,alf->ar", shown, clash, shown) == 0

        weight = possible * self._prior(example, words, seen)
        weight /= jnp.sum(weight, axis=-1, keepdims=True)

        # Where the rule takes the answer from, and whether the word there is seen, in either of two places.
        own, turn = example.query // self._span, example.query % self._span - self.size
        wanted = jnp.asarray(self._rules).T[turn]  # [A, R]
        own_seen = seen[jnp.arange(len(own)), own]  # [A, 2N]
        there = (places == wanted[:, :, None]) & own_seen[:, None]  # [A, R, 2N]
        alike = words[own][:, :, None] == words[own][:, None, : self.size]  # [A, 2N, N]
        says = jnp.any(there[..., None] & alike[:, None], axis=2)  # [A, R, N]: this word of the list
        known = jnp.any(alike & own_seen[:, :, None], axis=1)  # [A, N]
        choices = self._choices(example, seen) - jnp.sum(known, axis=-1)
        unseen = jnp.sum(weight * ~jnp.any(there, axis=-1), axis=-1) / jnp.maximum(choices, 1)
        return jnp.maximum(jnp.max(jnp.einsum("ar,arn->an", weight, says), axis=-1), unseen)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any word that it may be; copy: the word at the same place; nearest: the last one seen.

        order_free: the best that is told which words are a list's and which were made of it, in no order. Two words
        made tell whether all are the same, as under `first` and `last`; if not, none is made twice.
        """
        words, seen = self._read(example, visible)
        answers, target = jnp.arange(len(example.query)), example.targets[example.query]
        own, turn = example.query // self._span, example.query % self._span - self.size
        chance = 1 / self._choices(example, seen)
        mine, mine_seen = words[own], seen[answers, own]
        copied = jnp.where(mine_seen[answers, turn], mine[answers, turn] == target, chance)
        flat = seen.reshape(len(target), -1)
        last = jnp.max(jnp.where(flat, jnp.arange(flat.shape[-1]), -1), axis=-1)
        nearest = jnp.where(last < 0, chance, words.reshape(-1)[last] == target)
        known = jnp.any((mine[:, :, None] == mine[:, None, : self.size]) & mine_seen[:, :, None], axis=1)
        used = jnp.any(
            (mine[:, self.size :, None] == mine[:, None, : self.size]) & mine_seen[:, self.size :, None], axis=1
        )
        same = self._same(example, words, seen)
        again, other = (
            same / jnp.where(jnp.any(used, axis=-1), 1, self.size),
            (1 - same) / (self.size - jnp.sum(used, -1)),
        )
        repeats = (again >= other)[:, None] & used
        said = jnp.where(jnp.any(repeats, axis=-1, keepdims=True), repeats, known & ~used)
        bag = one_of(said, mine[:, : self.size] == target[:, None], chance)
        return {"chance": chance, "majority": chance, "nearest": nearest, "order_free": bag, "copy": copied}

    def _same(self, example: Batch, words: jax.Array, seen: jax.Array) -> Float[jax.Array, "A"]:
        """The probability that all words made of a list are the same, to one who sees no order."""
        made, made_seen = words[:, self.size :], seen[..., self.size :]
        two = made_seen[..., :, None] & made_seen[..., None, :] & ~jnp.eye(self.size, dtype=bool)
        alike = made[:, :, None] == made[:, None, :]
        sure, never = jnp.any(two & alike, axis=(1, 2, 3)), jnp.any(two & ~alike, axis=(1, 2, 3))
        constant = np.all(self._rules == self._rules[:, :1], axis=-1)
        share = self._prior(example, words, seen)
        share = jnp.sum(share * constant, axis=-1) / jnp.sum(share, axis=-1)
        return jnp.where(sure, 1.0, jnp.where(never, 0.0, share))
