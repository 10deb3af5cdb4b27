"""Facts and what they imply: an implication that was never shown can be had from a fact that was."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task
from positionbias.tokens import Tokens, sequential

MOST_NAMES = 65536  # tokens of the vocabulary
RELATIONS = 2
CONTEXT_ROLE, END_ROLE = range(2)


@member("tasks", "factual_recall")
@dataclasses.dataclass(frozen=True)
class FactualRecall(Task):
    """Out-of-context reasoning (Huang et al. 2025, arXiv 2506.10887): a fact, and an implication never trained.

    Every subject belongs to one of `groups`: relation r1 asks for its fact b_i, r2 for its implication c_i. Training
    shows the facts of all subjects and the implications of the `bridges` of each group alone; the condition "held_out"
    asks for the implications of the `held_out` others, whose c is known only through b. A sequence is the subject at
    a random place among `noise` tokens of `noise_kinds` kinds, the relation at a random later place, and an end token
    whose row answers.

    One sample of `factual_recall(groups=3, bridges=1, held_out=1, noise=4, noise_kinds=2)`:

        input    s1 -1 -1 -1 r2 -1 end
        target   .  .  .  .  .  .  c1

    One sample of `factual_recall(groups=3, bridges=1, held_out=1, noise=4, noise_kinds=2)`, condition held_out:

        input    s4 -1 -1 -1 r2 -1 end
        target   .  .  .  .  .  .  c1

    `noise=0` is the two-token form of the theory, where the relation's own row answers and there is no end token: with
    constant scores attention gives onehot(subject) + onehot(relation).

    One sample of `factual_recall(groups=3, bridges=1, held_out=1, noise=0, noise_kinds=2)`:

        input    s1 r2
        target   .  c1

    Training draws a bridge's fact, a bridge's implication and another's fact with equal chance, then a subject. The
    subject's place is uniform and so is the relation's behind it (in the released code an index one too large makes the
    last place of each twice as likely). Subject k is in group k mod `groups`, as published: names mean nothing to a
    model, so groups drawn at random for every replica would be the same task.

    Vocabulary: r1 r2, facts, implications, subjects (first the bridges), noise, end; 128 by default, also for noise=0.
    """

    groups: int = 20
    bridges: int = 1
    held_out: int = 3
    noise: int = 13
    noise_kinds: int = 5

    query_axis = "relation asked (0 fact, 1 implication)"
    evidence_axis = "place of the subject"
    no_baselines: ClassVar[dict[str, str]] = {"nearest": "no fact and no implication stands in the sequence"}

    def __post_init__(self) -> None:
        require(self.groups >= 2, "groups", self.groups, "a whole number from 2")
        require(
            self.bridges >= 1, "bridges", self.bridges, "a whole number from 1, for without a bridge nothing implies"
        )
        require(self.held_out >= 1, "held_out", self.held_out, "a whole number from 1")
        most = LONGEST - 3
        require(0 <= self.noise <= most, "noise", self.noise, f"a whole number from 0 to {most}")
        require(self.noise_kinds >= 1, "noise_kinds", self.noise_kinds, "a whole number from 1")
        what = "groups * (2 + bridges + held_out) + noise_kinds + 3"
        require(self.vocabulary <= MOST_NAMES, what, self.vocabulary, f"at most {MOST_NAMES} tokens in all")

    # ---- static

    @property
    def first_subject(self) -> int:
        """The token of subject 0, after relations, facts and implications."""
        return RELATIONS + 2 * self.groups

    @property
    def first_noise(self) -> int:
        """The token of the first kind of noise, after the subjects."""
        return self.first_subject + self.groups * (self.bridges + self.held_out)

    @property
    def vocabulary(self) -> int:
        """V; the last token is the end."""
        return self.first_noise + self.noise_kinds + 1

    @property
    def filler(self) -> int | None:  # type: ignore[override]
        return self.first_noise if self.noise else None

    @property
    def input(self) -> Size:
        return Size("tokens", self.vocabulary)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        return Condition("train"), Condition("held_out")

    def length(self, condition: Condition) -> int:
        return self.noise + 3 if self.noise else 2

    def context_length(self, condition: Condition) -> int:
        return self.length(condition) - 1

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([self.length(condition) - 1])

    def stretched(self, factor: int) -> Task:
        if not self.noise:
            return super().stretched(factor)
        return dataclasses.replace(self, noise=factor * (self.noise + 2) - 2)

    def tokens(self, condition: Condition) -> Tokens:
        length = self.length(condition)
        role = np.full(length, CONTEXT_ROLE, np.int32)
        role[-1] = END_ROLE
        return sequential(length, role=role)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        relation = np.array([2 / 3, 1 / 3] if condition.name == "train" else [0.0, 1.0])
        return {"query": relation, "evidence": np.full(self.noise + 1, 1 / (self.noise + 1))}

    def word(self, token: int) -> str:
        starts = {0: "r", RELATIONS: "b", RELATIONS + self.groups: "c", self.first_subject: "s", self.first_noise: "-"}
        if token == self.vocabulary - 1:
            return "end"
        start = max(at for at in starts if at <= token)
        return f"{starts[start]}{token - start + (start == 0)}"

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        key_kind, key_subject, key_place, key_later, key_noise = jax.random.split(key, 5)
        if condition.name == "train":
            kind = jax.random.randint(key_kind, (1,), 0, 3, jnp.int32)
            held, relation = kind == 2, (kind == 1).astype(jnp.int32)
        else:
            held, relation = jnp.ones(1, bool), jnp.ones(1, jnp.int32)
        first = jnp.where(held, self.groups * self.bridges, 0)
        count = jnp.where(held, self.groups * self.held_out, self.groups * self.bridges)
        subject = first + jax.random.randint(key_subject, (1,), 0, count, jnp.int32)
        place = jax.random.randint(key_place, (1,), 0, self.noise + 1, jnp.int32)
        later = place + 1 + jax.random.randint(key_later, (1,), 0, self.noise + 1 - place, jnp.int32)

        length, zero = self.length(condition), jnp.zeros(1, jnp.int32)
        noise = jax.random.randint(key_noise, (length,), self.first_noise, self.vocabulary - 1, jnp.int32)
        inputs = noise.at[-1].set(self.vocabulary - 1)
        inputs = inputs.at[place].set(self.first_subject + subject).at[later].set(relation)
        answer = RELATIONS + relation * self.groups + subject % self.groups
        return Batch(
            inputs=inputs,
            targets=jnp.zeros(length, jnp.int32).at[-1].set(answer[0]),
            weights=jnp.zeros(length).at[-1].set(1.0),
            tokens=self.tokens(condition),
            query=zero + length - 1,
            evidence=jnp.stack([later, place], axis=-1),
            order=zero,
            distance=length - 1 - place,
            n_distractors=zero,
            source=zero - 1,
            query_slot=relation,
            evidence_slot=place,
        )

    # ---- judged

    def _judged(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Per answer, bool[A]: the subject seen, the relation seen, a bridge, and an implication never trained."""
        relation, subject = (visible[example.query, example.evidence[:, i]] for i in range(2))
        bridge = example.inputs[example.evidence_slot] < self.first_subject + self.groups * self.bridges
        return subject, relation, bridge, (example.query_slot == 1) & ~bridge

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for an observer that has put facts and implications together and knows the condition's mixture."""
        subject, relation, bridge, untrained = self._judged(example, visible)
        # In training a bridge is asked for either with equal chance, another subject for its fact alone; whoever does
        # not see the relation says a fact, which is asked for twice as often. Held out, it is always the implication.
        certain = relation | untrained
        alone = jnp.where(bridge, 1 / 2, 1.0)
        guess = jnp.where(certain, 1.0, 2 / 3) / self.groups
        return jnp.where(subject, jnp.where(certain, 1.0, alone), guess)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance: any answer to the relation, or any at all where it is not seen; majority: the same, but any fact
        where it is not seen, for training asks for facts twice as often; order_free: knows what was trained.

        Nothing here depends on order, so `order_free` is the best that only looks up, and guesses what it never read.
        """
        _, relation, _, untrained = self._judged(example, visible)
        chance = jnp.where(relation, 1.0, 1 / RELATIONS) / self.groups
        return {
            "chance": chance,
            "majority": (relation | (example.query_slot == 0)) / self.groups,
            "order_free": jnp.where(untrained, chance, self.ceiling(example, visible)),
        }
