"""Cross-entropy on the target of each row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from positionbias.arrays import Bool, Int
from positionbias.objectives.base import Objective
from positionbias.spec import ConfigError, member, require
from positionbias.tasks.base import Batch, Condition, Task


class CrossEntropy(Objective):
    """Cross-entropy (nats) of the token each row should say."""

    targets = "tokens"

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)

    def right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return self.said(outputs) == targets

    def said(self, outputs: jax.Array) -> jax.Array:
        return jnp.argmax(outputs, axis=-1)

    def log_probability(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return -self.losses(outputs, targets)


@member("objectives", "next_token")
@dataclasses.dataclass(frozen=True)
class NextToken(CrossEntropy):
    """Cross-entropy (nats) of the token each row should say, on the rows that the task weights.

    With `others` above 0, the other rows say the token that comes next, and weigh that much, as in a language model
    that is trained on its prompts too.
    """

    others: float = 0.0

    def __post_init__(self) -> None:
        require(self.others >= 0, "others", self.others, "a number from 0")

    def check(self, task: Task) -> None:
        super().check(task)
        if self.others:
            same_vocabulary(self, task)

    def prepare(self, key: jax.Array, batch: Batch, task: Task, condition: Condition) -> Batch:
        if not self.others:
            return batch
        following = jnp.roll(batch.inputs, -1, axis=-1)
        valid = jnp.broadcast_to(jnp.asarray(batch.tokens.valid), batch.inputs.shape)
        has_next = valid & jnp.roll(valid, -1, axis=-1).at[..., -1].set(False)
        asked = batch.weights > 0
        return batch._replace(
            targets=jnp.where(asked, batch.targets, following),
            weights=jnp.where(asked, batch.weights, self.others * has_next),
        )

    @property
    def trains_context(self) -> bool:
        return self.others > 0

    def trained_rows(self, task: Task, condition: Condition) -> Int[np.ndarray, "Q"] | None:
        return None if self.others else task.query_rows(condition)

    def forbidden(self, task: Task, condition: Condition) -> Bool[np.ndarray, "T T"]:
        leaks = super().forbidden(task, condition)
        return leaks | np.eye(len(leaks), k=1, dtype=bool) if self.others else leaks


@member("objectives", "answer_only")
@dataclasses.dataclass(frozen=True)
class AnswerOnly(CrossEntropy):
    """Cross-entropy (nats) of the answers alone: the rows that are measured, whatever else the task weights."""

    def prepare(self, key: jax.Array, batch: Batch, task: Task, condition: Condition) -> Batch:
        return batch._replace(weights=batch.weights * at_rows(batch.query, batch.weights.shape[-1]))

    def trained_rows(self, task: Task, condition: Condition) -> Int[np.ndarray, "Q"] | None:
        return task.query_rows(condition)


class SaysInputs(CrossEntropy):
    """Cross-entropy of inputs that the model says, those of the context too."""

    def check(self, task: Task) -> None:
        super().check(task)
        same_vocabulary(self, task)

    @property
    def trains_context(self) -> bool:
        return True


def at_rows(rows: jax.Array, length: int) -> Bool[jax.Array, "... T"]:
    """Which of `length` rows are among `rows` i32[..., A]; a negative number is none."""
    return jnp.any(rows[..., :, None] == jnp.arange(length), axis=-2)


def same_vocabulary(objective: Objective, task: Task) -> None:
    """Raise ConfigError unless outputs are over the vocabulary of inputs, which the objective has the model say."""
    if task.input != task.output:
        raise ConfigError(
            f"objective: {objective.spec_name!r} has the model say inputs, but the task's are"  # type: ignore[attr-defined]
            f" {task.input.size} {task.input.kind} and its targets {task.output.size} {task.output.kind}; allowed: one"
            " vocabulary for both."
        )
