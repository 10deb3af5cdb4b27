"""Modular addition: every operand counts, and the last row, which is none of them, has to gather them all."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import Batch, Condition, Size, Task
from positionbias.tasks.sampling import distinct, permutation
from positionbias.tokens import Tokens, sequential

OPERAND_ROLE, EQUALS_ROLE = range(2)


@member("tasks", "modular_addition")
@dataclasses.dataclass(frozen=True)
class ModularAddition(Task):
    """Say the sum of `terms` numbers modulo `modulus`, on the row "=".

    Two operands are the task of Power et al. 2022 (arXiv 2201.02177) and Nanda et al. 2023 (arXiv 2301.05217), where a
    model that has learnt all sums it was shown may come to the others much later; three are that of the last-token
    analysis of All for One (arXiv 2509.09650).

    One sample of `modular_addition(modulus=7, terms=3)`:

        input    0 2 4 =
        target   . . . 6

    One sample of `modular_addition(modulus=7, terms=3)`, condition held_out:

        input    0 2 3 =
        target   . . . 5

    Conditions are `train` and `held_out`, other sums of the same world, which has `train_share` of them to train on.
    Where the papers draw that share at random, here a sum belongs to it by the class sum_i c_i x_i mod `modulus`, with
    coefficients (all different) and classes drawn by the world. In either condition all sums are then equally likely
    whatever two or more operands are hidden, and whoever misses one is left with the same number of values for it:
    `n_distractors` and the right one. a + b and b + a are two sums, one of which may be held out, as in the papers.
    """

    modulus: int = 31
    terms: int = 2
    train_share: float = 0.7

    query_axis = "query"
    evidence_axis = "slot of the last operand"

    def __post_init__(self) -> None:
        prime = 5 <= self.modulus <= 1009 and all(self.modulus % n for n in range(2, int(self.modulus**0.5) + 1))
        require(prime, "modulus", self.modulus, "a prime from 5 to 1009")
        most = min(16, self.modulus - 1)
        require(2 <= self.terms <= most, "terms", self.terms, f"a whole number from 2 to {most}")
        wanted = "a share between 0 and 1 that leaves both conditions a class of sums"
        fits = 0 < self.train_share < 1 and 1 <= self.classes < self.modulus
        require(fits, "train_share", self.train_share, wanted)

    # ---- static

    @property
    def classes(self) -> int:
        """How many of the `modulus` classes of sums are trained on."""
        return round(self.train_share * self.modulus)

    @property
    def input(self) -> Size:
        return Size("tokens", self.modulus + 1)

    @property
    def output(self) -> Size:
        return self.input

    def word(self, token: int) -> str:
        return "=" if token == self.modulus else str(token)

    def conditions(self) -> tuple[Condition, ...]:
        return (Condition("train"), Condition("held_out"))

    def length(self, condition: Condition) -> int:
        return self.terms + 1

    def context_length(self, condition: Condition) -> int:
        return self.terms

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([self.terms])

    def tokens(self, condition: Condition) -> Tokens:
        segment = np.arange(1, self.terms + 2, dtype=np.int32)
        segment[-1] = 0
        role = np.where(segment > 0, OPERAND_ROLE, EQUALS_ROLE).astype(np.int32)
        return sequential(self.terms + 1, segment=segment, role=role)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        return {"query": np.ones(1), "evidence": np.eye(self.terms)[-1]}

    # ---- sampled

    def world(self, key: Key[jax.Array, ""]) -> Tree:
        """The coefficients i32[terms] of a sum's class, the last one 1; and all classes, those trained on first."""
        coefficient_key, class_key = jax.random.split(key)
        others = 2 + distinct(coefficient_key, self.terms - 1, self.modulus - 2)
        return {
            "coefficients": jnp.append(others, 1).astype(jnp.int32),
            "classes": permutation(class_key, self.modulus),
        }

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        operand_key, class_key = jax.random.split(key)
        p, t = self.modulus, self.terms
        first, last = (0, self.classes) if condition.name == "train" else (self.classes, p)
        x = jax.random.randint(operand_key, (t - 1,), 0, p, jnp.int32)
        chosen = world["classes"][jax.random.randint(class_key, (), first, last)]
        x = jnp.append(x, (chosen - world["coefficients"][:-1] @ x) % p)
        zero = jnp.zeros(1, jnp.int32)
        return Batch(
            inputs=jnp.append(x, p),
            targets=jnp.zeros(t + 1, jnp.int32).at[-1].set(jnp.sum(x) % p),
            weights=jnp.zeros(t + 1).at[-1].set(1.0),
            tokens=self.tokens(condition),
            query=zero + t,
            evidence=jnp.arange(t, dtype=jnp.int32)[None],
            order=zero,
            distance=zero + 1,
            n_distractors=zero + last - first - 1,
            source=zero - 1,
            query_slot=zero,
            evidence_slot=zero + t - 1,
        )

    # ---- judged

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, for an observer who knows which sums belong to the example's condition."""
        hidden = self.terms - jnp.sum(visible[example.query, : self.terms], axis=-1)
        return jnp.where(hidden == 0, 1.0, jnp.where(hidden == 1, 1 / (example.n_distractors + 1), 1 / self.modulus))

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any number; nearest: the last operand seen; order_free: the sum of those seen."""
        seen = visible[example.query, : self.terms]
        target, chance = example.targets[example.query], jnp.full(1, 1 / self.modulus)
        said = jnp.sum(jnp.where(seen, example.inputs[: self.terms], 0), axis=-1) % self.modulus
        last = jnp.max(jnp.where(seen, jnp.arange(self.terms), -1), axis=-1)
        return {
            "chance": chance,
            "majority": chance,
            "nearest": jnp.where(last < 0, chance, (example.inputs[last] == target).astype(jnp.float32)),
            "order_free": (said == target).astype(jnp.float32),
        }
