"""Inverse permutation: a string is shown permuted, with its permutation, and must be read out in order."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Tree
from positionbias.spec import member, require
from positionbias.tasks.base import Batch, Condition, Size, Task, letters
from positionbias.tasks.sampling import permutation


@member("tasks", "inverse_permutation")
@dataclasses.dataclass(frozen=True)
class InversePermutation(Task):
    """Undo a permutation (Alur et al. 2025, arXiv 2509.24125), in tokens.

    A string y of `n` letters is drawn with replacement from an alphabet, and a uniform permutation p. The model reads
    p(0) .. p(n-1), then y[p(0)] .. y[p(n-1)], and has to say y[k] at slot k of the second block, or, with `scratch`
    tokens behind it, so many rows later: with n of them, or True, on these alone. Read at slot k of the second block a
    causal model has seen the letter only if it stands at a slot e <= k: accuracy is at most (k+1)/n +
    (1-(k+1)/n)/alphabet, whatever is learned. Each scratch token has every answer wait for one more letter.

    One sample of `inverse_permutation(n=4, alphabet=4)`:

        input    0 2 3 1 a d b a
        target   . . . . a a d b
    """

    n: int = 8
    alphabet: int = 16
    scratch: bool | int = False  # how many; True is n

    query_axis = "slot that answers"
    evidence_axis = "slot that holds the letter"

    def __post_init__(self) -> None:
        require(2 <= self.n <= 1024, "n", self.n, "a whole number from 2 to 1024")
        require(2 <= self.alphabet <= 65536, "alphabet", self.alphabet, "a whole number from 2 to 65536")
        require(0 <= self.scratch <= self.n, "scratch", self.scratch, f"True, False or a whole number up to {self.n}")

    @property
    def input(self) -> Size:
        return Size("tokens", self.n + self.alphabet + bool(self.scratch))

    @property
    def spare(self) -> int:
        """How many scratch tokens there are."""
        return self.n if self.scratch is True else int(self.scratch)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        return (Condition("train"),)

    def length(self, condition: Condition) -> int:
        return 2 * self.n + self.spare

    def context_length(self, condition: Condition) -> int:
        return self.length(condition) - self.n

    def query_rows(self, condition: Condition) -> np.ndarray:
        return np.arange(self.context_length(condition), self.length(condition))

    def prior(self, condition: Condition) -> dict[str, np.ndarray]:
        uniform = np.full(self.n, 1 / self.n)
        return {"query": uniform, "evidence": uniform}

    def word(self, token: int) -> str:
        if token < self.n:
            return str(token)
        return "*" if token == self.n + self.alphabet else letters(token - self.n)

    def sample(self, key: jax.Array, condition: Condition, world: Tree = ()) -> Batch:
        n, first = self.n, self.context_length(condition)
        key_order, key_letters = jax.random.split(key)
        order = permutation(key_order, n)
        string = n + jax.random.randint(key_letters, (n,), 0, self.alphabet, jnp.int32)
        blocks = [order, string[order]]
        if self.scratch:
            blocks.append(jnp.full(self.spare, n + self.alphabet, jnp.int32))
        slot = jnp.arange(n, dtype=jnp.int32)
        where = jnp.zeros(n, jnp.int32).at[order].set(slot)  # the slot at which letter k stands
        nothing = jnp.zeros(first, jnp.int32)
        return Batch(
            inputs=jnp.concatenate(blocks),
            targets=jnp.concatenate([nothing, string]),
            weights=jnp.concatenate([nothing, jnp.ones(n, jnp.int32)]).astype(jnp.float32),
            tokens=self.tokens(condition),
            query=first + slot,
            evidence=jnp.stack([where, n + where], axis=-1),
            order=jnp.zeros(n, jnp.int32),
            distance=first + slot - (n + where),
            n_distractors=jnp.full(n, n - 1, jnp.int32),
            source=jnp.full(n, -1, jnp.int32),
            query_slot=slot,
            evidence_slot=where,
        )

    def ceiling(self, example: Batch, visible: jax.Array) -> jax.Array:
        n = self.n
        seen = visible[example.query]  # [A, T]
        pointer, letter = seen[:, :n], seen[:, n : 2 * n]
        asked = example.evidence_slot[:, None] == jnp.arange(n)  # [A, n]
        found = jnp.any(asked & pointer, axis=-1, keepdims=True)
        # A row that sees the pointer knows the slot; else it can only rule out the slots whose pointer it sees.
        candidate = jnp.where(found, asked, ~pointer)
        kinds = jax.nn.one_hot(example.inputs[n : 2 * n] - n, self.alphabet)  # [n, letters]
        known = (candidate & letter).astype(jnp.float32) @ kinds
        hidden = jnp.sum(candidate & ~letter, axis=-1, keepdims=True) / self.alphabet
        return jnp.max(known + hidden, axis=-1) / jnp.sum(candidate, axis=-1)

    def baselines(self, example: Batch, visible: jax.Array) -> dict[str, jax.Array]:
        """chance and majority: any letter; nearest: the letter seen at the row nearest to the answer's, which may be
        that row itself; order_free: the letter seen most often."""
        n = self.n
        letter = visible[example.query][:, n : 2 * n]
        string, target = example.inputs[n : 2 * n], example.targets[example.query]
        chance = jnp.full(example.query.shape, 1 / self.alphabet)
        count = letter.astype(jnp.float32) @ jax.nn.one_hot(string - n, self.alphabet)
        top = count == jnp.max(count, axis=-1, keepdims=True)
        mode = jnp.take_along_axis(top, (target - n)[:, None], axis=-1)[:, 0] / jnp.sum(top, axis=-1)
        away = jnp.where(letter, jnp.abs(example.query[:, None] - (n + jnp.arange(n))), 3 * n)
        nearest = string[jnp.argmin(away, axis=-1)] == target
        return {
            "chance": chance,
            "majority": chance,  # letters are uniform, so no answer is more frequent than another
            "nearest": jnp.where(jnp.any(letter, axis=-1), nearest.astype(jnp.float32), chance),
            "order_free": mode,
        }
