"""A prompt that contradicts what was learned: the intent says which of the two is asked for."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, one_of
from positionbias.tasks.sampling import distinct
from positionbias.tokens import Tokens, sequential

MOST_NAMES = 16384  # subjects, and objects
MOST_FACTS = 65536  # the ceiling weighs every one of them
INTENTS = 2
USE, IGNORE, ABSENT = range(3)  # kinds of question; the first two are the intents' tokens as well
SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE, INTENT_ROLE, ASKED_ROLE, ANSWER_ROLE = range(6)


@functools.cache
def _facts(subjects: int, relations: int, objects: int) -> Int[np.ndarray, "S R"]:
    """The object of every subject and relation: shuffled for every relation, objects as often as one another."""
    shuffled = [np.random.RandomState(number).permutation(subjects) for number in range(relations)]
    return (np.stack(shuffled, axis=-1) % objects).astype(np.int32)


@member("tasks", "context_or_prior")
@dataclasses.dataclass(frozen=True)
class ContextOrPrior(Task):
    """Controllable context sensitivity (Minder et al. 2024, arXiv 2411.07404): answer from the prompt or from memory.

    Every subject and relation has one object: facts, which only training teaches. A prompt is `documents` triples of
    different subjects, objects at random, all about one relation; then the intent, the relation and the asked subject,
    whose row answers. Where a document speaks of the asked subject, its object is not the one of the fact: the intent
    "use" asks for the document's object, "ignore" for the fact's. Where none does, either intent asks for the fact.

    One sample of `context_or_prior(subjects=8, relations=2, objects=8, folds=4, documents=3)`, condition use:

        input    s7 r0 o1 s0 r0 o7 s4 r0 o3 use r0 s7
        target   .  .  .  .  .  .  .  .  .  .   .  o1

    One sample of `context_or_prior(subjects=8, relations=2, objects=8, folds=4, documents=3)`, condition ignore:

        input    s7 r0 o1 s0 r0 o7 s4 r0 o3 ignore r0 s7
        target   .  .  .  .  .  .  .  .  .  .      .  o4

    One sample of `context_or_prior(subjects=8, relations=2, objects=8, folds=4, documents=3)`, condition absent:

        input    s3 r0 o1 s0 r0 o7 s4 r0 o3 use r0 s6
        target   .  .  .  .  .  .  .  .  .  .   .  o5

    One fact of each `folds` is, in training, never asked for where a document contradicts it, and learned where no
    document speaks of its subject; these are spread evenly over subjects and relations (the paper holds out whole
    relations). Training draws use, ignore and absent with equal chance, then a fact. Conditions: "use", "ignore" and
    "absent" as trained; "held_out_use" and "held_out_ignore" ask for the others where a document does contradict them.
    "use" and "ignore" have the same items, but for the intent, so that pair accuracy is measured: the share of items
    that are right under both.

    Curves: the slot of the document about the asked subject is uniform, whatever is asked; in "absent" it is that of a
    document about another. Evidence is what holds the answer: that document, or the question's own relation and
    subject. The facts are the same for every replica. Vocabulary: the intents, subjects, relations, objects.
    """

    subjects: int = 64
    relations: int = 4
    objects: int = 64
    folds: int = 4
    documents: int = 4

    movable = True
    slots_are_segments = True
    query_axis = "question (0 use, 1 ignore, 2 absent)"
    evidence_axis = "slot of the document about the subject"

    def __post_init__(self) -> None:
        most = (LONGEST - 3) // 3
        require(1 <= self.documents <= most, "documents", self.documents, f"a whole number from 1 to {most}")
        fewest = self.documents + 1
        what = f"a whole number from documents + 1 = {fewest} to {MOST_NAMES}"
        require(fewest <= self.subjects <= MOST_NAMES, "subjects", self.subjects, what)
        require(fewest <= self.objects <= MOST_NAMES, "objects", self.objects, what)
        most = MOST_FACTS // self.subjects
        what = f"a whole number from 1 to {most}, {MOST_FACTS} facts in all"
        require(1 <= self.relations <= most, "relations", self.relations, what)
        what = f"a whole number from 2 that divides subjects = {self.subjects}"
        require(self.folds >= 2 and self.subjects % self.folds == 0, "folds", self.folds, what)

    # ---- static

    @property
    def _first_object(self) -> int:
        return INTENTS + self.subjects + self.relations

    @property
    def input(self) -> Size:
        return Size("tokens", self._first_object + self.objects)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        def made(name: str, kinds: tuple[int, ...], held_out: bool = False, items: str = "") -> Condition:
            return Condition(name, (("kinds", kinds), ("held_out", held_out)), items)

        return (
            made("train", (USE, IGNORE, ABSENT)),
            made("use", (USE,), items="trained"),
            made("ignore", (IGNORE,), items="trained"),
            made("absent", (ABSENT,)),
            made("held_out_use", (USE,), held_out=True, items="held_out"),
            made("held_out_ignore", (IGNORE,), held_out=True, items="held_out"),
        )

    def stretched(self, factor: int) -> ContextOrPrior:
        return dataclasses.replace(self, documents=factor * self.documents)

    def length(self, condition: Condition) -> int:
        return 3 * self.documents + 3

    def context_length(self, condition: Condition) -> int:
        return 3 * self.documents

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([self.length(condition) - 1])

    def tokens(self, condition: Condition) -> Tokens:
        question = [INTENT_ROLE, ASKED_ROLE, ANSWER_ROLE]
        role = np.array([SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE] * self.documents + question, np.int32)
        segment = np.append(np.repeat(np.arange(1, self.documents + 1), 3), [0, 0, 0]).astype(np.int32)
        return sequential(len(role), role=role, segment=segment)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        asked = np.isin(np.arange(3), condition["kinds"]) / len(condition["kinds"])
        return {"query": asked, "evidence": np.full(self.documents, 1 / self.documents)}

    def word(self, token: int) -> str:
        if token < INTENTS:
            return ("use", "ignore")[token]
        starts = {"s": INTENTS, "r": INTENTS + self.subjects, "o": self._first_object}
        letter = max((name for name in starts if starts[name] <= token), key=lambda name: starts[name])
        return f"{letter}{token - starts[letter]}"

    @property
    def _objects(self) -> Int[np.ndarray, "S R"]:
        return _facts(self.subjects, self.relations, self.objects)

    @property
    def _held_out(self) -> Bool[np.ndarray, "S R"]:
        return (np.arange(self.subjects)[:, None] + np.arange(self.relations)) % self.folds == 0

    @property
    def _commonest(self) -> Float[np.ndarray, "O"]:
        """The share of each object among those that training asks for most often: one, or several that tie."""
        facts, trained = self._objects, ~self._held_out
        asked, known = (np.bincount(these, minlength=self.objects) for these in (facts[trained], facts.ravel()))
        # "ignore" asks for a trained fact, "absent" for any fact, and "use" for any object but that of a trained fact.
        often = asked * (self.objects - 2) * facts.size + known * (self.objects - 1) * trained.sum()
        return ((often == often.max()) / np.sum(often == often.max())).astype(np.float32)

    # ---- sampled

    def _fact(self, key: Key[jax.Array, ""], kind: jax.Array, held_out: bool) -> tuple[jax.Array, jax.Array]:
        """A uniform subject and relation among those that may be asked: held out, trained, or any if absent."""
        fold_key, block_key, relation_key = jax.random.split(key, 3)
        relation = jax.random.randint(relation_key, (), 0, self.relations, jnp.int32)
        block = jax.random.randint(block_key, (), 0, self.subjects // self.folds, jnp.int32)
        trained = jax.random.randint(fold_key, (), jnp.where(kind == ABSENT, 0, 1), self.folds, jnp.int32)
        fold = jnp.zeros((), jnp.int32) if held_out else trained
        return self.folds * block + (fold - relation) % self.folds, relation

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        # Under one key, all but the intent is the same in "use" and in "ignore".
        keys = jax.random.split(key, 6)
        kind = jnp.array(condition["kinds"], jnp.int32)[jax.random.randint(keys[0], (), 0, len(condition["kinds"]))]
        intent = jnp.where(kind == ABSENT, jax.random.randint(keys[1], (), 0, INTENTS, jnp.int32), kind)
        subject, relation = self._fact(keys[2], kind, condition["held_out"])
        fact = jnp.asarray(self._objects)[subject, relation]
        slot = jax.random.randint(keys[3], (), 0, self.documents, jnp.int32)
        others = distinct(keys[4], self.documents, self.subjects - 1)
        others += others >= subject
        told = distinct(keys[5], self.documents, self.objects - 1)
        told += told >= fact

        subjects = jnp.where(kind == ABSENT, others, others.at[slot].set(subject))
        about = INTENTS + self.subjects + relation
        documents = jnp.stack(
            [INTENTS + subjects, jnp.full_like(subjects, about), self._first_object + told], axis=-1
        ).reshape(-1)
        length = self.length(condition)
        in_prompt = kind == USE
        evidence = jnp.where(in_prompt, jnp.stack([3 * slot, 3 * slot + 2]), jnp.array([length - 2, length - 1]))
        answer = self._first_object + jnp.where(in_prompt, told[slot], fact)
        zero = jnp.zeros(1, jnp.int32)
        return Batch(
            inputs=jnp.concatenate([documents, jnp.stack([intent, about, INTENTS + subject])]),
            targets=jnp.zeros(length, jnp.int32).at[-1].set(answer),
            weights=jnp.zeros(length).at[-1].set(1.0),
            tokens=self.tokens(condition),
            query=zero + length - 1,
            evidence=evidence[None],
            order=zero,
            distance=length - 1 - evidence[1:],
            n_distractors=zero + self.documents - in_prompt,
            source=zero - 1,
            query_slot=kind[None],
            evidence_slot=slot[None],
        )

    # ---- judged

    def _read(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Numbers of subject, relation and object of every document i32[D, 3], which of them are seen bool[D, 3]; the
        question's intent, subject and relation i32[3], and which of them are seen bool[3]."""
        row, starts = visible[example.query[0]], jnp.array([INTENTS, INTENTS + self.subjects, self._first_object])
        numbers = example.inputs[:-3].reshape(-1, 3) - starts
        question = np.array([-3, -1, -2])
        asked = example.inputs[question] - jnp.array([0, INTENTS, INTENTS + self.subjects])
        return numbers, row[:-3].reshape(-1, 3), asked, row[question]

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for an observer that knows the facts, the layout and training's mixture.

        Held out, it knows that much: one of the facts held out is asked for, under either intent alike.
        Every fact that what it sees allows is weighed, with every place that a document about its subject may have.
        """
        numbers, seen, asked, asked_seen = self._read(example, visible)
        facts, held_out = jnp.asarray(self._objects), jnp.asarray(self._held_out)
        size, count, documents = facts.size, int(self._held_out.sum()), self.documents
        untrained = held_out[asked[1], asked[2]] & (example.query_slot[0] != ABSENT)
        contradicted = jnp.where(untrained, held_out / (2 * count), ~held_out / (3 * (size - count)))  # an intent
        absent = jnp.where(untrained, 0, 1 / (6 * size))  # and an intent

        # The document about each subject, as far as subjects are seen.
        subject_seen, object_seen = seen[:, 0], seen[:, 2]
        place = jnp.where(subject_seen, jnp.arange(documents), -1)
        at = jnp.full(self.subjects, -1).at[numbers[:, 0]].max(place)[:, None]
        named, hidden = jnp.sum(subject_seen), jnp.sum(~subject_seen)
        spoken = jnp.where(at >= 0, self.subjects - named, hidden) / documents  # against none about the subject
        shown = jnp.zeros(self.objects, bool).at[numbers[:, 2]].max(object_seen)
        allowed = ~shown[facts]  # the fact's own object is in no document
        allowed &= ~asked_seen[1] | (jnp.arange(self.subjects)[:, None] == asked[1])
        relation_seen = asked_seen[2] | jnp.any(seen[:, 1])
        allowed &= ~relation_seen | (jnp.arange(self.relations) == asked[2])

        intents = [~asked_seen[0] | (asked[0] == intent) for intent in (USE, IGNORE)]
        recalled = intents[1] * contradicted * spoken + (intents[0] * 1 + intents[1]) * absent * (at < 0)
        recalled = jnp.where(allowed, recalled, 0)
        told = jnp.where(allowed, intents[0] * contradicted * spoken, 0)

        # Where the object told is seen: in the document about the subject, or in one whose subject is not.
        read = (at >= 0) & object_seen[at]
        loose = ~subject_seen & object_seen
        each = jnp.sum(jnp.where(at < 0, told, 0)) / jnp.maximum(hidden, 1)
        unread = jnp.where(at < 0, jnp.sum(~subject_seen & ~object_seen) / jnp.maximum(hidden, 1), ~read)
        spread = told * unread / jnp.maximum(self.objects - 1 - jnp.sum(object_seen), 1)
        found = jnp.zeros(self.objects).at[facts].add(recalled - spread)
        found = jnp.where(shown, 0, found + jnp.sum(spread))
        found = found.at[numbers[:, 2]].add(loose * each)
        found = found.at[numbers[at[:, 0], 2]].add(jnp.sum(jnp.where(read, told, 0), axis=-1))
        return (jnp.max(found) / (jnp.sum(recalled) + jnp.sum(told)))[None]

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance: any object; majority: the one that training asks for most; nearest: the last object seen; prior: the
        fact, whatever the intent; context: the object of the document about the subject; order_free: knows the facts
        and a bag of the tokens seen, so that under "use" it says any object of a bag that holds the subject twice."""
        numbers, seen, asked, asked_seen = self._read(example, visible)
        target = example.targets[example.query[0]] - self._first_object
        chance, from_memory = jnp.full((), 1 / self.objects), example.query_slot[0] != USE
        right, object_seen = numbers[:, 2] == target, seen[:, 2]
        mine = seen[:, 0] & asked_seen[1] & (numbers[:, 0] == asked[1])
        last = jnp.max(jnp.where(object_seen, jnp.arange(self.documents), -1))
        prior = jnp.where(asked_seen[1] & asked_seen[2], from_memory, chance)
        take = asked_seen[0] & (asked[0] == USE) & jnp.any(mine)
        found = {
            "chance": chance,
            "majority": jnp.asarray(self._commonest)[target],
            "nearest": jnp.where(last < 0, chance, right[last]),
            "prior": prior,
            "context": jnp.where(jnp.any(mine & object_seen), jnp.any(mine & right), chance),
            "order_free": jnp.where(take, one_of(object_seen, right, prior), prior),
        }
        return {name: value[None] for name, value in found.items()}
