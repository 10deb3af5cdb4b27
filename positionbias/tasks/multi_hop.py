"""Documents that state one fact each: the answer lies at the end of a chain of them."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters, one_of
from positionbias.tasks.sampling import distinct, permutation, scattered
from positionbias.tokens import Tokens, sequential

MOST_DOCUMENTS = 256  # the ceiling compares all pairs of them
MOST_NAMES = 65536  # entities, and relations
FILLER = 0
SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE, FILLER_ROLE, START_ROLE, PATH_ROLE = range(6)


@member("tasks", "multi_hop")
@dataclasses.dataclass(frozen=True)
class MultiHop(Task):
    """Follow a chain of facts through documents (Huang et al. 2025, "Masking in Multi-hop QA", arXiv 2505.11754).

    A document is a triple: entity, relation, entity. The documents make documents / hops complete chains of `hops`
    triples, all over one path of relations, no two through the same entity. After them come the entity that one chain
    starts from and the path, and the last row says where that chain ends. The last documents of all chains look alike:
    a rule that reads documents one at a time is right once in #chains.

    One sample of `multi_hop(hops=2, documents=4, entities=8, relations=3, gaps=[1])`:

        input    c 3 a d 2 h g 3 d a 2 f c 3 2
        target   . . . . . . . . . . . . . . f

    With `typed` the entities of each step of a chain, and the relations of each hop, are of a kind of their own, as in
    object -> holder -> place. `fillers` tokens that say nothing are scattered between the documents. Both together are
    a symbolic BABILong (Kuratov et al. 2024, arXiv 2406.10149).

    One sample of `multi_hop(documents=4, entities=4, relations=1, gaps=[], fillers=5, typed=True)`, condition backward:

        input    - - b1 2 c2 b3 2 c3 a1 1 b3 - - a0 1 b1 - a0 1 2
        target   . . .  . .  .  . .  .  . .  . . .  . .  . .  . c2

    Conditions: "random" has all documents in uniform order, and so has "original" (the order of the paper's data set
    knows nothing of the chains). In "forward" and "backward" the asked chain's documents share out the slots they have
    in the order of the chain, or its reverse. In "forward_gap_I", for I of `gaps`, the last of them is the last
    document and I others lie between one and the next; to name the end of the last document is always right there, as
    the baselines tell. In "remove_first" the asked chain's first document is left out: a reader can still look for the
    chain that nothing leads into.

    Segments are the documents, numbered from 1 as they stand. `order` is the rank of the order of the asked chain's
    documents among all orders: 0 is forward, the last one backward. Vocabulary: 0 is filler, then entities, with
    `typed` kind by kind, then relations.
    """

    hops: int = 2
    documents: int = 12
    entities: int = 32
    relations: int = 4
    gaps: tuple[int, ...] = (0, 1)
    fillers: int = 0
    typed: bool = False

    filler = FILLER
    movable = True
    slots_are_segments = True
    query_axis = "other documents among the asked chain's"
    evidence_axis = "slot of the document with the answer"

    def __post_init__(self) -> None:
        hops = self.hops
        require(2 <= hops <= 4, "hops", hops, "a whole number from 2 to 4")
        what = f"a multiple of hops = {hops} from {2 * hops} to {MOST_DOCUMENTS}, two complete chains or more"
        whole = self.documents % hops == 0 and 2 * hops <= self.documents <= MOST_DOCUMENTS
        require(whole, "documents", self.documents, what)
        fewest = self.chains if self.typed else self.chains * (hops + 1)
        what = f"a whole number from {fewest}, which the chains of {self.documents} documents need, to {MOST_NAMES}"
        require(fewest <= self.entities <= MOST_NAMES, "entities", self.entities, what)
        fewest = 1 if self.typed else hops
        what = f"a whole number from {fewest} to {MOST_NAMES}" + ("" if self.typed else ", one each hop")
        require(fewest <= self.relations <= MOST_NAMES, "relations", self.relations, what)
        widest = (self.documents - hops) // (hops - 1)
        what = f"different whole numbers from 0 to {widest}, (documents - hops) / (hops - 1)"
        fits = all(0 <= gap <= widest for gap in self.gaps) and len(set(self.gaps)) == len(self.gaps)
        require(fits, "gaps", list(self.gaps), what)
        most = LONGEST - 3 * self.documents - hops - 1
        require(0 <= self.fillers <= most, "fillers", self.fillers, f"0 to {most}, {LONGEST} tokens in all")

    @property
    def chains(self) -> int:
        """Number of chains."""
        return self.documents // self.hops

    # ---- static

    @property
    def shared_tokens(self) -> bool:  # type: ignore[override]
        """Fillers put the documents of each example elsewhere."""
        return self.fillers == 0

    @property
    def _first_relation(self) -> int:
        return 1 + self.entities * (self.hops + 1 if self.typed else 1)

    @property
    def input(self) -> Size:
        return Size("tokens", self._first_relation + self.relations * (self.hops if self.typed else 1))

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        orders = {"random": "random", "original": "random", "forward": "forward", "backward": "backward"}
        return (
            *(Condition(name, (("order", order),)) for name, order in orders.items()),
            *(Condition(f"forward_gap_{gap}", (("order", "gap"), ("gap", gap))) for gap in self.gaps),
            Condition("remove_first", (("order", "removed"),)),
        )

    def stretched(self, factor: int) -> MultiHop:
        if self.fillers:  # the same documents, farther apart
            context = 3 * self.documents + self.fillers
            return dataclasses.replace(self, fillers=self.fillers + (factor - 1) * context)
        return dataclasses.replace(self, documents=factor * self.documents)

    def _counts(self, condition: Condition) -> tuple[int, int]:
        """How many documents there are, and how many of them are the asked chain's."""
        removed = condition["order"] == "removed"
        return self.documents - removed, self.hops - removed

    def segments(self, condition: Condition) -> int:
        return self._counts(condition)[0]

    def length(self, condition: Condition) -> int:
        return self.context_length(condition) + self.hops + 1

    def context_length(self, condition: Condition) -> int:
        return 3 * self.segments(condition) + self.fillers

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([self.length(condition) - 1])

    def tokens(self, condition: Condition) -> Tokens:
        role = np.zeros(self.length(condition), np.int32)
        role[-self.hops - 1 :] = [START_ROLE] + [PATH_ROLE] * self.hops
        if self.fillers:
            return sequential(len(role), role=role)
        shown, segment = self.segments(condition), np.zeros_like(role)
        role[: 3 * shown] = [SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE] * shown
        segment[: 3 * shown] = np.repeat(np.arange(1, shown + 1), 3)
        return sequential(len(role), role=role, segment=segment)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        order, (shown, gold) = condition["order"], self._counts(condition)
        among = np.zeros(shown - gold + 1)
        if order == "gap":
            among[condition["gap"] * (gold - 1)] = 1
        elif gold == 1:
            among = np.ones(1)
        else:  # sets of `gold` slots with so many others between the first and the last
            others = range(len(among))
            among[:] = [(len(among) - n) * math.comb(gold - 2 + n, n) / math.comb(shown, gold) for n in others]
        last = np.full(shown, 1 / shown)
        if order in ("forward", "backward"):  # the last slot of the set, or the first
            last = np.array([math.comb(slot, gold - 1) / math.comb(shown, gold) for slot in range(shown)])
            last = last if order == "forward" else last[::-1]
        elif order == "gap":
            last = np.eye(shown)[-1]
        return {"query": among, "evidence": last}

    def word(self, token: int) -> str:
        if token == FILLER:
            return "-"
        if token >= self._first_relation:
            return str(token - self._first_relation + 1)
        kind, number = divmod(token - 1, self.entities)
        return f"{letters(kind)}{number}" if self.typed else letters(number)

    # ---- sampled

    def _entities(self, key: Key[jax.Array, ""]) -> Int[jax.Array, "C K"]:
        """What every chain leads through: i32[chains, hops + 1], all different."""
        steps = self.hops + 1
        if not self.typed:
            return 1 + distinct(key, self.chains * steps, self.entities).reshape(-1, steps)
        numbers = jax.vmap(lambda k: distinct(k, self.chains, self.entities))(jax.random.split(key, steps))
        return 1 + numbers.T + self.entities * jnp.arange(steps)

    def _path(self, key: Key[jax.Array, ""]) -> Int[jax.Array, "H"]:
        """The relation of every hop, all different."""
        if not self.typed:
            return self._first_relation + distinct(key, self.hops, self.relations)
        numbers = jax.random.randint(key, (self.hops,), 0, self.relations, jnp.int32)
        return self._first_relation + numbers + self.relations * jnp.arange(self.hops)

    def _slots(self, key: Key[jax.Array, ""], condition: Condition) -> Int[jax.Array, "D"]:
        """The slot of every document, the asked chain's first."""
        order, (shown, gold) = condition["order"], self._counts(condition)
        if order == "gap":
            fixed = shown - 1 - (condition["gap"] + 1) * np.arange(gold)[::-1]
            others = jnp.asarray(np.setdiff1d(np.arange(shown), fixed), jnp.int32)
            return jnp.concatenate([jnp.asarray(fixed, jnp.int32), others[permutation(key, shown - gold)]])
        slots = permutation(key, shown)
        if order in ("forward", "backward"):
            slots = slots.at[:gold].set(jnp.sort(slots[:gold], descending=order == "backward"))
        return slots

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        entity_key, path_key, slot_key, start_key = jax.random.split(key, 4)
        (shown, gold), length = self._counts(condition), self.length(condition)
        entities, path = self._entities(entity_key), self._path(path_key)
        relations = jnp.broadcast_to(path, (self.chains, self.hops))
        triples = jnp.stack([entities[:, :-1], relations, entities[:, 1:]], axis=-1).reshape(-1, 3)

        slots = self._slots(slot_key, condition)
        rows = scattered(start_key, shown, 3, self.fillers)[slots][:, None] + jnp.arange(3)
        nothing = jnp.zeros(length, jnp.int32)
        inputs = nothing.at[rows].set(triples[self.documents - shown :])
        inputs = inputs.at[-self.hops - 1 :].set(jnp.concatenate([entities[0, :1], path]))
        tokens = self.tokens(condition)
        if self.fillers:
            role = jnp.full(length, FILLER_ROLE).at[rows].set(jnp.array([SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE]))
            role = role.at[-self.hops - 1 :].set(tokens.role[-self.hops - 1 :])
            tokens = tokens._replace(role=role, segment=nothing.at[rows].set(slots[:, None] + 1))

        query = jnp.full(1, length - 1, jnp.int32)
        order, among, slot = _ranked(slots[:gold])
        return Batch(
            inputs=inputs,
            targets=nothing.at[-1].set(entities[0, -1]),
            weights=nothing.astype(jnp.float32).at[-1].set(1.0),
            tokens=tokens,
            query=query,
            evidence=rows[:gold, ::2].reshape(1, -1),
            order=order,
            distance=query - rows[gold - 1, 2],
            n_distractors=jnp.full(1, self.chains - 1, jnp.int32),
            source=jnp.full(1, -1, jnp.int32),
            query_slot=among,
            evidence_slot=slot,
        )

    def after_move(self, example: Batch) -> Batch:
        starts = _rows(example.tokens, self._shown(example))[:, 0]
        subjects = example.evidence[0, ::2]
        order, among, slot = _ranked(jnp.sum(starts < subjects[:, None], axis=-1, dtype=jnp.int32))
        return example._replace(order=order, query_slot=among, evidence_slot=slot)

    # ---- judged

    def _shown(self, example: Batch) -> int:
        """How many documents there are; one is missing if the asked chain's first was removed."""
        return (example.inputs.shape[0] - self.fillers - self.hops - 1) // 3

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for a reader to whom all orders of the documents are equally likely, which is what training teaches.

        It knows the layout: to which document a row belongs, and to which place in it. An entity that is seen in two
        documents joins them. Ends that are seen but join nothing go on in a document of the next hop whose start is
        hidden, starts likewise, and all ways to join them up are equally likely: so the asked chain is a walk over
        documents. In "remove_first" the reader knows what was left out.

        Without `typed`, a document that shows an entity and hides its relation may be of any hop, as may all documents
        if two relations of the path or more are hidden: no closed form is known, and the ceiling is nan.
        """
        row, shown = visible[example.query[0]], self._shown(example)
        at = _rows(example.tokens, shown)
        documents, seen = example.inputs[at], row[at]
        start, path = example.inputs[-self.hops - 1], example.inputs[-self.hops :]
        start_seen, path_seen = row[-self.hops - 1], row[-self.hops :]
        if shown < self.documents:
            documents = jnp.concatenate([jnp.stack([start, path[0], start])[None], documents])
            seen = jnp.concatenate([jnp.zeros((1, 3), bool), seen])
        hop = jnp.argmax(documents[:, 1, None] == path, axis=-1)
        subject, subject_seen, end, end_seen = documents[:, 0], seen[:, 0], documents[:, 2], seen[:, 2]

        # Row d, column e: how likely document e comes after document d.
        joined = (end[:, None] == subject) & end_seen[:, None] & subject_seen
        follows = hop[:, None] + 1 == hop
        loose = subject_seen & ~jnp.any(joined, axis=0)
        hidden = ~subject_seen
        n_hidden = jnp.sum(follows & hidden, axis=-1, keepdims=True)
        n_loose = jnp.sum(follows & loose, axis=-1, keepdims=True)
        n_open = jnp.sum((hop[:, None] == hop) & ~end_seen, axis=-1, keepdims=True)  # of the own hop: end not seen
        to_hidden = follows & hidden
        from_seen = to_hidden / jnp.maximum(n_hidden, 1)
        from_open = ((follows & loose) + from_seen * (n_open - n_loose)) / jnp.maximum(n_open, 1)
        dangling = end_seen & ~jnp.any(joined, axis=1)
        after = joined + jnp.where(dangling[:, None], from_seen, 0) + jnp.where(end_seen[:, None], 0, from_open)

        first = hop == 0
        if shown < self.documents:
            chance = (jnp.arange(self.documents) == 0).astype(jnp.float32)
        else:
            named = start_seen & subject_seen & (subject == start)
            possible = jnp.where(start_seen, jnp.where(jnp.any(named), named, first & hidden), first)
            chance = possible / jnp.sum(possible)
        for _ in range(self.hops - 1):
            chance = chance @ after

        final = hop == self.hops - 1
        if self.typed:
            names_seen = jnp.sum(final & end_seen)
        else:
            unnamed = start_seen & ~jnp.any(subject_seen & (subject == start))
            names_seen = jnp.sum(subject_seen) + jnp.sum(end_seen) - jnp.sum(joined) + unnamed
        best = jnp.max(jnp.where(end_seen, chance, 0))
        unseen = jnp.sum(jnp.where(end_seen, 0, chance)) / jnp.maximum(self.entities - names_seen, 1)
        found = jnp.maximum(best, unseen)[None]
        if self.typed:
            return found
        anything = jnp.any(seen)
        clear = jnp.all(seen[:, 1] | ~jnp.any(seen, axis=-1)) & (jnp.sum(path_seen) >= self.hops - 1)
        return jnp.where(clear | ~anything, found, jnp.nan)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """Rules that read documents one at a time, beside chance and majority: any entity.

        nearest: the last entity seen in a document; last_document, first_document, any_chain_end: the end of the last,
        the first or any document seen whose relation is the last of the path. order_free: any of the entities that a
        bag of the tokens seen holds once, as it holds what is at an end of a chain; with `typed` of the last kind.
        """
        row, at = visible[example.query[0]], _rows(example.tokens, self._shown(example))
        documents, seen = example.inputs[at], row[at]
        start, path = example.inputs[-self.hops - 1], example.inputs[-self.hops :]
        target = example.targets[example.query[0]]
        chance = jnp.full((), 1.0 / self.entities)

        def said(candidates: jax.Array, names: jax.Array) -> jax.Array:
            return one_of(candidates, names == target, chance)

        ends, rows = documents[:, 2], at[:, 2]
        if self.typed:
            final = seen[:, 2] & (ends > self.hops * self.entities)
        else:
            final = jnp.all(seen[:, 1:], axis=-1) & row[-1] & (documents[:, 1] == path[-1])
        last = rows == jnp.max(jnp.where(final, rows, -1))
        first = rows == jnp.min(jnp.where(final, rows, LONGEST))
        names, named, places = documents[:, ::2].reshape(-1), seen[:, ::2].reshape(-1), at[:, ::2].reshape(-1)
        asked = row[-self.hops - 1] & (names == start)
        once = named & (jnp.sum((names[:, None] == names) & named, axis=-1) + asked == 1)
        if self.typed:
            once &= names > self.hops * self.entities
        found = {
            "chance": chance,
            "majority": chance,
            "nearest": said(named & (places == jnp.max(jnp.where(named, places, -1))), names),
            "last_document": said(final & last, ends),
            "first_document": said(final & first, ends),
            "any_chain_end": said(final, ends),
            "order_free": said(once, names),
        }
        return {name: value[None] for name, value in found.items()}


def _rows(tokens: Tokens, count: int) -> Int[jax.Array, "D 3"]:
    """The rows of every document, by its number."""
    number = 1 + jnp.arange(count)
    start = jnp.argmax(jnp.asarray(tokens.segment) == number[:, None], axis=-1)
    return start[:, None] + jnp.arange(3)


def _ranked(slots: Int[jax.Array, "G"]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`order`, `query_slot` and `evidence_slot` of an answer, from its documents' slots in the order of the chain."""
    gold = slots.shape[0]
    # The rank among all orders as a dictionary has them: how many later ones stand before, in factorial digits.
    overtaken = jnp.sum(jnp.triu(slots < slots[:, None], 1), axis=-1)
    digits = np.array([math.factorial(gold - 1 - place) for place in range(gold)])
    order = jnp.sum(overtaken * digits, keepdims=True, dtype=jnp.int32)
    return order, (jnp.max(slots) - jnp.min(slots) - gold + 1)[None], slots[-1:]
