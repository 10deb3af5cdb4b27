"""Documents that state one fact each: the answer lies at the end of a chain of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters, one_of
from positionbias.tasks.chains import arranged, last_slot, order_rank, others_between
from positionbias.tasks.sampling import distinct, permutation, scattered
from positionbias.tokens import Tokens, sequential

MOST_DOCUMENTS = 256  # the ceiling compares all pairs of them
MOST_NAMES = 65536  # entities, and relations
FILLER = 0
PLACES = (1, 0, 2)  # of subject, relation and object in a document
ORDERS = ("random", "forward", "backward")  # of the documents of every chain
SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE, FILLER_ROLE, START_ROLE, PATH_ROLE = range(6)


@member("tasks", "multi_hop")
@dataclasses.dataclass(frozen=True)
class MultiHop(Task):
    """Follow a chain of facts through documents (Huang et al. 2025, "Masking in Multi-hop QA", arXiv 2505.11754).

    A document is a triple: relation, subject, object, as in "the capital of France is Paris". They make
    documents / hops complete chains of `hops` triples, all over one path of relations, no two through the same entity.
    After them come the path, its last relation first, and the entity that one chain starts from, as in "the capital of
    the country of Ann is": so the last row, which says where that chain ends, holds the name that it has to look up.
    The last documents of all chains look alike: a rule that reads documents one at a time is right once in #chains.

    One sample of `multi_hop(hops=2, documents=4, entities=8, relations=3, gaps=[1])`:

        input    2 d h 3 g d 2 a f 3 c a 2 3 c
        target   . . . . . . . . . . . . . . f

    With `typed` the entities of each step of a chain, and the relations of each hop, are of a kind of their own, as in
    object -> holder -> place. `fillers` tokens that say nothing are scattered between the documents. Both together are
    a symbolic BABILong (Kuratov et al. 2024, arXiv 2406.10149). With `mixed` training asks for 1 to `hops` hops of a
    chain, all equally likely, and filler stands for the relations that a path lacks: small models learn to take two
    hops once they can take one.

    One sample of `multi_hop(documents=4, entities=4, relations=1, gaps=[], fillers=5, typed=True, mixed=True)`:

        input    - - 2 b3 c3 1 a1 b3 2 b1 c2 - - 1 a0 b1 - 2 1 a0
        target   . . . .  .  . .  .  . .  .  . . . .  .  . . . c2

    Conditions: "original" has all documents in uniform order (the paper's "random"); it is trained on, or with `mixed`
    "train", which is like it. In "forward" and "backward" the documents of every chain (in the paper of the asked one
    alone) share out the slots that they have in the order of the chain, or its reverse, in "random" in an order that is
    drawn for all chains together; in all else the items of these three are the same. As all chains stand alike, a rule
    that picks among their last documents gains by no order; `nearest`, which reads no relation, does: the last document
    of all ends a chain in "forward", and none in "backward". In "forward_gap_I", for I of `gaps`, the asked chain's
    last document is the last of all, and I others lie between each of its documents and the next; to name the end of
    the last document is always right there, as the baselines tell. In "remove_first" the asked chain's first document
    is left out: a reader can still look for the chain that nothing leads into.

    Segments are the documents, numbered from 1 as they stand. `order`, told where all chains stand alike, is the rank
    of theirs among all orders: 0 is forward, the last one backward. Vocabulary: 0 is filler, then entities, with
    `typed` kind by kind, then relations.
    """

    hops: int = 2
    documents: int = 12
    entities: int = 128
    relations: int = 4
    gaps: tuple[int, ...] = (0, 1)
    fillers: int = 0
    typed: bool = False
    mixed: bool = False

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
        train = (Condition("train", (("order", "mixed"),)),) if self.mixed else ()
        return (
            *train,
            Condition("original", (("order", "any"),)),
            *(Condition(order, (("order", order),), items="ordered") for order in ORDERS),
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
        role[-self.hops - 1 :] = [PATH_ROLE] * self.hops + [START_ROLE]
        if self.fillers:
            return sequential(len(role), role=role)
        shown, segment = self.segments(condition), np.zeros_like(role)
        role[: 3 * shown] = [RELATION_ROLE, SUBJECT_ROLE, OBJECT_ROLE] * shown
        segment[: 3 * shown] = np.repeat(np.arange(1, shown + 1), 3)
        return sequential(len(role), role=role, segment=segment)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        order, (shown, gold) = condition["order"], self._counts(condition)
        taken = range(1, gold + 1) if order == "mixed" else [gold]
        among = np.mean([others_between(shown, documents) for documents in taken], axis=0)
        last = np.full(shown, 1 / shown)
        if order in ("forward", "backward"):
            last = last_slot(shown, gold)[:: 1 if order == "forward" else -1]
        elif order == "gap":
            among, last = np.eye(shown)[condition["gap"] * (gold - 1)], np.eye(shown)[-1]
        return {"query": np.trim_zeros(among, "b"), "evidence": last}

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
        slot_key, order_key = jax.random.split(key)
        if order == "gap":
            fixed = shown - 1 - (condition["gap"] + 1) * np.arange(gold)[::-1]
            others = jnp.asarray(np.setdiff1d(np.arange(shown), fixed), jnp.int32)
            return jnp.concatenate([jnp.asarray(fixed, jnp.int32), others[permutation(slot_key, shown - gold)]])
        slots = permutation(slot_key, shown)
        if order not in ORDERS:
            return slots
        steps = jnp.arange(gold, dtype=jnp.int32)
        turn = {"random": permutation(order_key, gold), "forward": steps, "backward": steps[::-1]}[order]
        return arranged(slots.reshape(-1, gold), turn).reshape(-1)

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        entity_key, path_key, slot_key, start_key, hops_key = jax.random.split(key, 5)
        (shown, gold), length = self._counts(condition), self.length(condition)
        entities, path = self._entities(entity_key), self._path(path_key)
        relations = jnp.broadcast_to(path, (self.chains, self.hops))
        triples = jnp.stack([entities[:, :-1], relations, entities[:, 1:]], axis=-1).reshape(-1, 3)
        hops = jnp.full((), self.hops, jnp.int32)
        if condition["order"] == "mixed":
            hops = jax.random.randint(hops_key, (), 1, self.hops + 1, jnp.int32)

        slots = self._slots(slot_key, condition)
        rows = scattered(start_key, shown, 3, self.fillers)[slots][:, None] + jnp.array(PLACES)
        nothing = jnp.zeros(length, jnp.int32)
        inputs = nothing.at[rows].set(triples[self.documents - shown :])
        asked = jnp.where(jnp.arange(self.hops) < hops, path, FILLER)
        inputs = inputs.at[-self.hops - 1 :].set(jnp.concatenate([asked[::-1], entities[0, :1]]))
        tokens = self.tokens(condition)
        if self.fillers:
            role = jnp.full(length, FILLER_ROLE).at[rows].set(jnp.array([SUBJECT_ROLE, RELATION_ROLE, OBJECT_ROLE]))
            role = role.at[-self.hops - 1 :].set(tokens.role[-self.hops - 1 :])
            tokens = tokens._replace(role=role, segment=nothing.at[rows].set(slots[:, None] + 1))

        # The documents that it takes, in the order of the chain; where it takes fewer than all, the last of `gold`.
        beyond = self.hops - hops
        needed, mine = jnp.arange(gold) >= beyond, jnp.roll(slots[:gold], beyond)
        evidence = jnp.where(needed[:, None], jnp.roll(rows[:gold, ::2], beyond, axis=0), -1)
        query = jnp.full(1, length - 1, jnp.int32)
        among, slot = _places(mine, needed)
        return Batch(
            inputs=inputs,
            targets=nothing.at[-1].set(entities[0, hops]),
            weights=nothing.astype(jnp.float32).at[-1].set(1.0),
            tokens=tokens,
            query=query,
            evidence=evidence.reshape(1, -1),
            order=order_rank(mine)[None] if condition["order"] in ORDERS else jnp.full(1, -1, jnp.int32),
            distance=query - evidence[-1, 1],
            n_distractors=jnp.full(1, self.chains - 1, jnp.int32),
            source=jnp.full(1, -1, jnp.int32),
            query_slot=among,
            evidence_slot=slot,
        )

    def after_move(self, example: Batch) -> Batch:
        starts = _rows(example.tokens, self._shown(example))[:, 0]
        subjects = example.evidence[0, ::2]
        slots = jnp.sum(starts < subjects[:, None], axis=-1, dtype=jnp.int32)
        among, slot = _places(slots, subjects >= 0)
        return example._replace(order=jnp.full(1, -1, jnp.int32), query_slot=among, evidence_slot=slot)

    # ---- judged

    def _kind(self, names: jax.Array) -> jax.Array:
        """Of which step of a chain entities are, with `typed`."""
        return (names - 1) // self.entities

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
        if two relations of the path or more are hidden: no closed form is known, and the ceiling is nan. So it is with
        `mixed` where a row does not see how many hops are asked for, or they are fewer and not all seen.
        """
        row, shown = visible[example.query[0]], self._shown(example)
        at = _rows(example.tokens, shown)
        documents, seen = example.inputs[at], row[at]
        start, path = example.inputs[-1], example.inputs[-2 : -self.hops - 2 : -1]
        start_seen, path_seen = row[-1], row[-2 : -self.hops - 2 : -1]
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
        anything = jnp.any(row)
        if self.mixed:
            told, needed = jnp.all(path_seen), example.evidence[0]
            whole = told & start_seen & jnp.all(row[needed] | (needed < 0))
            found = jnp.where(told & (path[-1] != FILLER), found, jnp.where(whole, 1.0, jnp.nan))
            found = jnp.where(anything, found, 1 / (self.entities * (self.hops if self.typed else 1)))
        if self.typed:
            return found
        clear = jnp.all(seen[:, 1] | ~jnp.any(seen, axis=-1)) & (jnp.sum(path_seen) >= self.hops - 1)
        return jnp.where(clear | ~jnp.any(seen), found, jnp.nan)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """Rules that read documents one at a time, beside chance and majority: any entity.

        nearest: the last entity seen in a document; last_document, first_document, any_chain_end: the end of the last,
        the first or any document seen whose relation is the last of the path. order_free: any of the entities that a
        bag of the tokens seen holds as often as the answer, once at the end of a chain; with `typed` of its kind.
        """
        row, at = visible[example.query[0]], _rows(example.tokens, self._shown(example))
        documents, seen = example.inputs[at], row[at]
        start, path = example.inputs[-1], example.inputs[-2 : -self.hops - 2 : -1]
        hops, target = jnp.sum(path != FILLER), example.targets[example.query[0]]
        told = jnp.all(row[-self.hops - 1 : -1]) | (not self.mixed)  # how many hops
        chance = jnp.where(told | (not self.typed), 1.0, 1 / self.hops) / self.entities

        def said(candidates: jax.Array, names: jax.Array) -> jax.Array:
            return one_of(candidates, names == target, chance)

        ends, rows = documents[:, 2], at[:, 2]
        if self.typed:
            final = seen[:, 2] & told & (self._kind(ends) == hops)
        else:
            final = jnp.all(seen[:, 1:], axis=-1) & told & row[-1 - hops] & (documents[:, 1] == path[hops - 1])
        last = rows == jnp.max(jnp.where(final, rows, -1))
        first = rows == jnp.min(jnp.where(final, rows, LONGEST))
        names, named, places = documents[:, ::2].reshape(-1), seen[:, ::2].reshape(-1), at[:, ::2].reshape(-1)
        if self.typed:
            alike = self._kind(names) == hops
        else:
            asked = row[-1] & (names == start)
            count = jnp.sum((names[:, None] == names) & named, axis=-1) + asked
            alike = jnp.where(hops == self.hops, count == 1, (count == 2) & ~asked)
        found = {
            "chance": chance,
            "majority": chance,
            "nearest": said(named & (places == jnp.max(jnp.where(named, places, -1))), names),
            "last_document": said(final & last, ends),
            "first_document": said(final & first, ends),
            "any_chain_end": said(final, ends),
            "order_free": said(named & told & alike, names),
        }
        return {name: value[None] for name, value in found.items()}


def _rows(tokens: Tokens, count: int) -> Int[jax.Array, "D 3"]:
    """The rows of every document's subject, relation and object, by its number."""
    number = 1 + jnp.arange(count)
    start = jnp.argmax(jnp.asarray(tokens.segment) == number[:, None], axis=-1)
    return start[:, None] + jnp.array(PLACES)


def _places(slots: Int[jax.Array, "G"], needed: Bool[jax.Array, "G"]) -> tuple[jax.Array, jax.Array]:
    """`query_slot` and `evidence_slot` of an answer, from the slots of the documents `needed`, the last one last."""
    first, last = jnp.min(jnp.where(needed, slots, LONGEST)), jnp.max(jnp.where(needed, slots, -1))
    return (last - first - jnp.sum(needed, dtype=jnp.int32) + 1)[None], slots[-1:]
