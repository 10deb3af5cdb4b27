"""Inverse permutation in matrix form: bit vectors are shown permuted, with their permutation, and put in order."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Shaped, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import Batch, Condition, Size, Task
from positionbias.tasks.sampling import permutation
from positionbias.tokens import Tokens, sequential

SCRATCH_ROLE, POINTER_ROLE, STRING_ROLE = range(3)


@member("tasks", "inverse_permutation_matrix")
@dataclasses.dataclass(frozen=True)
class InversePermutationMatrix(Task):
    """Undo a permutation as Alur et al. 2025 (arXiv 2509.24125) state it: X = [P ; P Y], the answer is Y.

    Y has `d` rows of `d` fair bits and P is a uniform permutation matrix: row i of P is the unit vector of p(i), row i
    of P Y is row p(i) of Y. `scratch` puts d rows of zeros before and after, [0 ; P ; P Y ; 0]. Row k of Y is asked for
    at the k-th of the `answer_rows` "first" (the first d rows, of P or of the scratch before) or "last" (the last d,
    of P Y or of the scratch after). The paper reads the first rows, and the last where scratch meets a causal mask.

    One sample of `inverse_permutation_matrix(d=4)`:

        input    1000 0010 0001 0100 0111 1001 1011 1111
        target   0111 1111 1001 1011 .    .    .    .

    One sample of `inverse_permutation_matrix(d=3, scratch=True, answer_rows='last')`:

        input    000 000 000 100 010 001 011 111 111 000 000 000
        target   .   .   .   .   .   .   .   .   .   011 111 111

    An input row has its one-hot position behind the d features, [X, I_T] with T the length, which is what the paper's
    disentangled transformer reads: `model.position` is "none", `model.width` is d + T (18 at d = 6, 30 with scratch).

    Under a causal mask the first rows see nothing of Y: at best the squared error is d/4 and a row is right with chance
    2^-d. The rows of P Y see the row they ask for only if it stands at their own slot or before, (d+1)/2d of them.
    """

    d: int = 6
    scratch: bool = False
    answer_rows: Literal["first", "last"] = "first"

    query_axis = "row of Y that is asked"
    evidence_axis = "slot that holds the row"

    def __post_init__(self) -> None:
        require(2 <= self.d <= 128, "d", self.d, "a whole number from 2 to 128")

    # ---- static

    @property
    def rows(self) -> int:
        """T."""
        return (4 if self.scratch else 2) * self.d

    @property
    def pointers(self) -> int:
        """The first row of P; that of P Y is d rows on."""
        return self.d if self.scratch else 0

    @property
    def input(self) -> Size:
        return Size("vectors", self.d + self.rows)

    @property
    def output(self) -> Size:
        return Size("vectors", self.d)

    def conditions(self) -> tuple[Condition, ...]:
        return (Condition("train"),)

    def length(self, condition: Condition) -> int:
        return self.rows

    def context_length(self, condition: Condition) -> int:
        """All rows where the first ones answer: they are part of what is read."""
        return self.rows if self.answer_rows == "first" else self.rows - self.d

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.arange(self.d) + (0 if self.answer_rows == "first" else self.rows - self.d)

    def tokens(self, condition: Condition) -> Tokens:
        blocks = [POINTER_ROLE, STRING_ROLE]
        blocks = [SCRATCH_ROLE, *blocks, SCRATCH_ROLE] if self.scratch else blocks
        return sequential(self.rows, role=np.repeat(np.array(blocks, np.int32), self.d))

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        uniform = np.full(self.d, 1 / self.d)
        return {"query": uniform, "evidence": uniform}

    def words(self, values: Shaped[np.ndarray, "T D"], size: Size) -> list[str]:
        return ["".join(f"{bit:.0f}" for bit in row[: self.d]) for row in values]

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        d = self.d
        key_order, key_bits = jax.random.split(key)
        order = permutation(key_order, d)
        # Drawn flat: the same bits as of shape (d, d), which take a CPU three times as long at d = 10.
        string = jax.random.bernoulli(key_bits, shape=(d * d,)).reshape(d, d).astype(jnp.float32)
        scratch = [jnp.zeros((d, d))] if self.scratch else []
        shown = jnp.concatenate([*scratch, jax.nn.one_hot(order, d), string[order], *scratch])
        slot = jnp.arange(d, dtype=jnp.int32)
        where = jnp.zeros(d, jnp.int32).at[order].set(slot)  # the slot at which row k of Y stands
        query = jnp.asarray(self.query_rows(condition), jnp.int32)
        held = self.pointers + d + where
        return Batch(
            inputs=jnp.concatenate([shown, jnp.eye(self.rows)], axis=-1),
            targets=jnp.zeros((self.rows, d)).at[query].set(string),
            weights=jnp.zeros(self.rows).at[query].set(1.0),
            tokens=self.tokens(condition),
            query=query,
            evidence=jnp.stack([self.pointers + where, held], axis=-1),
            order=jnp.zeros(d, jnp.int32),
            distance=query - held,
            n_distractors=jnp.full(d, d - 1, jnp.int32),
            source=jnp.full(d, -1, jnp.int32),
            query_slot=slot,
            evidence_slot=where,
        )

    # ---- judged

    def _seen(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Per answer and slot: whether the row of P, and of P Y, is seen bool[A, d]; and the rows of P Y f32[d, d]."""
        start, d = self.pointers, self.d
        seen = visible[example.query]
        string = example.inputs[start + d : start + 2 * d, :d]
        return seen[:, start : start + d], seen[:, start + d : start + 2 * d], string

    def _candidates(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The slots, equally likely, that each row may stand at bool[A, d]; then as `_seen`."""
        pointer, held, string = self._seen(example, visible)
        asked = example.evidence_slot[:, None] == jnp.arange(self.d)
        found = jnp.any(asked & pointer, axis=-1, keepdims=True)
        # Whoever sees the pointer knows the slot; else it can only rule out the slots whose pointers it sees.
        return jnp.where(found, asked, ~pointer), held, string

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact, of a whole row of bits."""
        candidate, held, string = self._candidates(example, visible)
        known = jnp.max((candidate & held).astype(jnp.float32) @ _alike(string), axis=-1)
        hidden = jnp.sum(candidate & ~held, axis=-1) * 0.5**self.d
        return (known + hidden) / jnp.sum(candidate, axis=-1)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any bits; nearest: the nearest row of P Y seen; order_free: the row seen most often."""
        _, held, string = self._seen(example, visible)
        some = jnp.any(held, axis=-1)
        chance = jnp.full(self.d, 0.5**self.d)
        alike = _alike(string)
        right = alike[example.evidence_slot]  # [A, d]: whether a slot's row is the answer
        count = jnp.where(held, held.astype(jnp.float32) @ alike, 0.0)
        top = (count == jnp.max(count, axis=-1, keepdims=True)) & held
        # Each of the most frequent rows is said with equal chance; a row seen n times fills n of the slots at the top.
        mode = jnp.sum(top * right, axis=-1) / jnp.maximum(jnp.sum(top, axis=-1), 1)
        away = jnp.abs(example.query[:, None] - (self.pointers + self.d + jnp.arange(self.d)))
        nearest = jnp.argmin(jnp.where(held, away, self.rows), axis=-1)
        return {
            "chance": chance,
            "majority": chance,
            "nearest": jnp.where(some, jnp.take_along_axis(right, nearest[:, None], axis=-1)[:, 0], chance),
            "order_free": jnp.where(some, mode, chance),
        }

    def losses(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """floor: exact; chance: one half for every bit."""
        candidate, held, string = self._candidates(example, visible)
        bits = jnp.where(held[:, :, None], string, 0.5)  # [A, slots, d]: the mean of each bit of a slot
        mean = jnp.sum(candidate[:, :, None] * bits, axis=1) / jnp.sum(candidate, axis=-1, keepdims=True)
        return {"floor": jnp.sum(mean * (1 - mean), axis=-1), "chance": jnp.full(self.d, self.d / 4)}


def _alike(string: Float[jax.Array, "d d"]) -> Float[jax.Array, "d d"]:
    """1 where two rows of bits are equal, else 0."""
    agreeing = string @ string.T + (1 - string) @ (1 - string).T
    return (agreeing == string.shape[-1]).astype(jnp.float32)
