"""Groups of entities that belong together: one of a group is named, and another of it is asked for."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters, one_of
from positionbias.tasks.sampling import distinct
from positionbias.tokens import Tokens, sequential

MOST_MEMBERS = 26
MOST_NAMES = 65536
MEMBER_ROLE, ASKED_ROLE, NAMED_ROLE = range(3)


@member("tasks", "entity_binding")
@dataclasses.dataclass(frozen=True)
class EntityBinding(Task):
    """Entities bound by the group that they stand in ("Mixing Mechanisms", 2025, arXiv 2510.06182).

    Each of `groups` groups has an entity for each of `members` slots, as in "Ann loves pie": every slot has entities of
    its own, all different. After them come the mark of a slot and an entity of another one, whose row says which entity
    of the marked slot stands in the same group. The entity is last, for small models soon learn to look up the token of
    the row that answers, and hardly one in front of it.

    One sample of `entity_binding(groups=3, members=3, names=5)`:

        input    a0 b3 c3 a1 b4 c0 a4 b1 c2 a? c0
        target   .  .  .  .  .  .  .  .  .  .  a1

    What a mechanism may go by: the place of the group (positional), the entity that is named (lexical), or the one
    that is asked for (reflexive). Conditions: "train" draws both slots, all pairs equally likely; in "before" the slot
    that is asked for stands before that of the named entity, so that under a causal mask the answer's token cannot
    know the name, in "after" it stands behind it.

    Segments are the groups, numbered from 1; the asked one is uniform. Evidence is the named entity, then the answer;
    `order` is 0 where they stand in this order ("after"), 1 in the other. Vocabulary: a mark for each slot, then the
    entities, slot by slot.
    """

    groups: int = 20
    members: int = 3
    names: int = 128

    movable = True
    slots_are_segments = True
    query_axis = "slot asked for"
    evidence_axis = "group"

    def __post_init__(self) -> None:
        require(2 <= self.members <= MOST_MEMBERS, "members", self.members, f"a whole number from 2 to {MOST_MEMBERS}")
        most = (LONGEST - 2) // self.members
        what = f"a whole number from 2 to {most}, {LONGEST} tokens in all"
        require(2 <= self.groups <= most, "groups", self.groups, what)
        most = MOST_NAMES // self.members
        what = f"a whole number from {self.groups}, one for each of the groups, to {most}, {MOST_NAMES} entities in all"
        require(self.groups <= self.names <= most, "names", self.names, what)

    # ---- static

    @property
    def input(self) -> Size:
        return Size("tokens", self.members * (1 + self.names))

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        pairs = tuple(itertools.permutations(range(self.members), 2))
        return (
            Condition("train", (("pairs", pairs),)),
            Condition("before", (("pairs", tuple((named, asked) for named, asked in pairs if asked < named)),)),
            Condition("after", (("pairs", tuple((named, asked) for named, asked in pairs if asked > named)),)),
        )

    def stretched(self, factor: int) -> EntityBinding:
        return dataclasses.replace(self, groups=factor * self.groups)

    def length(self, condition: Condition) -> int:
        return self.context_length(condition) + 2

    def context_length(self, condition: Condition) -> int:
        return self.groups * self.members

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([self.length(condition) - 1])

    def tokens(self, condition: Condition) -> Tokens:
        context = self.context_length(condition)
        role = np.full(context + 2, MEMBER_ROLE, np.int32)
        role[context:] = [ASKED_ROLE, NAMED_ROLE]
        segment = np.zeros_like(role)
        segment[:context] = np.repeat(np.arange(1, self.groups + 1), self.members)
        return sequential(len(role), role=role, segment=segment)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        asked = np.bincount([asked for _, asked in condition["pairs"]], minlength=self.members)
        return {"query": asked / asked.sum(), "evidence": np.full(self.groups, 1 / self.groups)}

    def word(self, token: int) -> str:
        if token < self.members:
            return f"{letters(token)}?"
        slot, number = divmod(token - self.members, self.names)
        return f"{letters(slot)}{number}"

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        name_key, pair_key, group_key = jax.random.split(key, 3)
        draw = jax.vmap(lambda k: distinct(k, self.groups, self.names), out_axes=1)
        numbers = draw(jax.random.split(name_key, self.members))
        entities = self.members + self.names * jnp.arange(self.members, dtype=jnp.int32) + numbers  # [groups, members]
        pairs = jnp.array(condition["pairs"], jnp.int32)
        named, asked = pairs[jax.random.randint(pair_key, (), 0, len(pairs))]
        group = jax.random.randint(group_key, (1,), 0, self.groups, jnp.int32)

        length, zero = self.length(condition), jnp.zeros(1, jnp.int32)
        query, answer = zero + length - 1, group * self.members + asked
        inputs = jnp.concatenate([entities.reshape(-1), asked[None], entities[group, named]])
        return Batch(
            inputs=inputs,
            targets=jnp.zeros(length, jnp.int32).at[-1].set(inputs[answer[0]]),
            weights=jnp.zeros(length).at[-1].set(1.0),
            tokens=self.tokens(condition),
            query=query,
            evidence=jnp.stack([group * self.members + named, answer], axis=-1),
            order=zero + (asked < named),
            distance=query - answer,
            n_distractors=zero + self.groups - 1,
            source=zero - 1,
            query_slot=asked[None],
            evidence_slot=group,
        )

    # ---- judged

    def _read(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Entities [groups, members] and which of them are seen; whether the slot asked for and the named one are."""
        row, shape = visible[example.query[0]], (self.groups, self.members)
        return example.inputs[:-2].reshape(shape), row[:-2].reshape(shape), row[-2:]

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for a reader to whom all pairs of slots are equally likely, which is what training teaches."""
        entities, seen, (asked_seen, name_seen) = self._read(example, visible)
        name, slot = example.inputs[-1], jnp.arange(self.members)
        named = (name - self.members) // self.names
        # The group: that of the named entity, or any whose entity of this slot is not seen, or any at all.
        column = seen[:, named]
        found = column & (entities[:, named] == name)
        possible = ~name_seen | jnp.where(jnp.any(found), found, ~column)
        group = possible / jnp.sum(possible)
        # The slot: the one asked for, or any other than the named entity's, or any at all.
        allowed = jnp.where(asked_seen, slot == example.inputs[-2], ~name_seen | (slot != named))
        asked = allowed / jnp.sum(allowed)
        shown = jnp.max(jnp.where(seen, group[:, None], 0), axis=0)
        hidden = jnp.sum(jnp.where(seen, 0, group[:, None]), axis=0)
        left = jnp.maximum(self.names - jnp.sum(seen, axis=0), 1)
        return jnp.max(asked * jnp.maximum(shown, hidden / left))[None]

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any entity of the slot asked for; nearest: the last of that slot that is seen;
        order_free: any of that slot that is seen, all of which a bag of the tokens holds alike."""
        entities, seen, (asked_seen, _) = self._read(example, visible)
        asked = example.inputs[-2]
        right, shown = entities[:, asked] == example.targets[-1], seen[:, asked]
        last = jnp.max(jnp.where(shown, jnp.arange(self.groups), -1))
        chance = jnp.where(asked_seen, 1.0, 1 / self.members) / self.names
        knows = asked_seen & jnp.any(shown)
        found = {
            "chance": chance,
            "majority": chance,
            "nearest": jnp.where(knows, right[last], chance),
            "order_free": jnp.where(asked_seen, one_of(shown, right, chance), chance),
        }
        return {name: value.astype(jnp.float32)[None] for name, value in found.items()}
