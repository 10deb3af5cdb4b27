"""Saying inputs one after another, in any order."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Int
from positionbias.objectives.next_token import SaysInputs, at_rows
from positionbias.spec import ConfigError, member
from positionbias.tasks.base import Batch, Condition, Task, world_of
from positionbias.tasks.sampling import permutation
from positionbias.tokens import Tokens

LOOKED_AT = 64  # items that tell whether answers stand in inputs
CHECKED_ORDERS = 3  # drawn, beside the order stored and its reverse


@member("objectives", "random_order")
@dataclasses.dataclass(frozen=True)
class RandomOrder(SaysInputs):
    """Every input of a sequence is said from those before it, in an order drawn for the sequence.

    Randomised-order decoding (ARPG, Li et al. 2025, arXiv 2503.10568). Row i says its own input, so that no row may see
    itself: the architecture is `two_stacks`, whose masks read the place in the order (`rank`). Answers, which must
    stand in inputs, are asked after all else was told in the order stored; several in theirs.
    """

    tells = frozenset({"rank"})
    remedy = "the architecture 'two_stacks' with masks that read the order, such as '[by_rank, by_rank(strict=True)]'"

    def check(self, task: Task) -> None:
        super().check(task)
        for condition in task.conditions():
            if not _answers_are_inputs(task, condition):
                name = self.spec_name  # type: ignore[attr-defined]
                raise ConfigError(
                    f"objective: {name!r} says inputs, but in condition {condition.name} of the task some answers stand"
                    " in none; allowed: a task whose answers are inputs, such as 'reversal'."
                )

    def prepare(self, key: jax.Array, batch: Batch, task: Task, condition: Condition) -> Batch:
        keys = jax.random.split(key, len(batch.inputs))
        rank = jax.vmap(lambda one: permutation(one, batch.inputs.shape[-1]))(keys)
        valid = jnp.broadcast_to(jnp.asarray(batch.tokens.valid), batch.inputs.shape)
        return batch._replace(
            targets=batch.inputs, weights=valid.astype(jnp.float32), tokens=batch.tokens._replace(rank=rank)
        )

    def ask(self, batch: Batch, task: Task, condition: Condition) -> Batch:
        length = batch.inputs.shape[-1]
        last = at_rows(batch.source, length)
        return batch._replace(tokens=batch.tokens._replace(rank=jnp.arange(length) + length * last))

    def rows(self, batch: Batch) -> Int[jax.Array, "... A"]:
        return batch.source

    def layouts(self, tokens: Tokens) -> tuple[Tokens, ...]:
        """Inputs told in the order stored, in its reverse, and in some others."""
        draw = np.random.default_rng(0)
        orders = [np.arange(tokens.length), np.arange(tokens.length)[::-1]]
        orders += [draw.permutation(tokens.length) for _ in range(CHECKED_ORDERS)]
        return tuple(tokens._replace(rank=order.astype(np.int32)) for order in orders)

    def forbidden(self, task: Task, condition: Condition) -> Bool[np.ndarray, "T T"]:
        return np.eye(task.length(condition), dtype=bool)


@functools.lru_cache(maxsize=64)
def _answers_are_inputs(task: Task, condition: Condition) -> bool:
    """Whether all answers of some items do; looked at once, as a sweep builds one task many times."""
    key = jax.random.key(0)
    drawn = jax.jit(lambda key, world: task.batch(key, condition, LOOKED_AT, world).source)
    return bool((np.asarray(drawn(key, world_of(task, key))) >= 0).all())
