"""The objective protocol: what a model is trained on and asked, the loss, and what a loss row must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Shaped, Tree
from positionbias.config import schema
from positionbias.spec import ConfigError
from positionbias.tasks.base import Batch, Condition, Size, Task
from positionbias.tokens import Tokens


class Objective:
    """A loss on rows: row t of the outputs is held against row t of the targets, with the task's weights."""

    axis = "objectives"
    targets: str  # kind of targets it takes: "tokens" or "vectors"
    tells: ClassVar[frozenset[str]] = frozenset()  # the fields of tokens that it tells anew, of every example
    two_modes: ClassVar[bool] = False  # whether it needs a mask that switches

    remedy: ClassVar[str] = "a mask under which no path leads there, such as 'causal'"  # where a row sees what it says

    def check(self, task: Task) -> None:
        """Raise ConfigError if the task's targets are not of the kind this objective takes."""
        if task.output.kind != self.targets:
            raise ConfigError(
                f"objective: {self.spec_name!r} takes targets that are {self.targets}, but the task's are"  # type: ignore[attr-defined]
                f" {task.output.kind}; allowed: an objective for {task.output.kind}."
            )

    def check_model(self, model: schema.Model) -> None:
        """Raise ConfigError if the network cannot be trained so."""

    def input(self, size: Size) -> Size:
        """Kind and size of what the model reads, given the task's inputs; may add tokens of its own, such as a mask."""
        return size

    def prepare(self, key: Key[jax.Array, ""], batch: Batch, task: Task, condition: Condition) -> Batch:
        """The batch as the model is trained on it: inputs, targets and weights may change, at random.

        Shapes and where answers stand must not; of tokens only what it `tells` may. `key` is another at every step.
        """
        return batch

    def ask(self, batch: Batch, task: Task, condition: Condition) -> Batch:
        """The batch as the model is asked it when it is measured: answers that stand in inputs may have to be hidden.

        What it changes of inputs and tokens is all that is read.
        """
        return batch

    def rows(self, batch: Batch) -> Int[jax.Array, "... A"]:
        """The row whose output is the answer to each question."""
        return batch.query

    def trained_rows(self, task: Task, condition: Condition) -> Int[np.ndarray, "Q"] | None:
        """The rows that may have weight once a batch is prepared; None for any.

        Others get no outputs, so that a weight there would count in `total` and in no loss.
        """
        return None

    def total(self, batch: Batch) -> Float[jax.Array, ""]:
        """What the summed loss of a batch is divided by."""
        return jnp.sum(batch.weights)

    def layouts(self, tokens: Tokens) -> tuple[Tokens, ...]:
        """The layouts that a config is checked under, numpy [T] each, where the objective tells tokens of its own."""
        return (tokens,)

    @property
    def own_tokens(self) -> bool:
        """Whether examples are read with tokens that differ, whatever the task."""
        return bool(self.tells)

    @property
    def trains_context(self) -> bool:
        """Whether it trains rows of the context, which not every architecture gives outputs for."""
        return False

    def forbidden(self, task: Task, condition: Condition) -> Bool[np.ndarray, "T T"]:
        """Where loss row i must not depend on input j; a config whose model reaches there is refused."""
        return task.leaks(condition)

    def tuned(self, key: Key[jax.Array, ""], params: Tree, gradient: Callable[[Tree], Tree]) -> Tree:
        """The parameters that a step's gradient is taken at; `gradient(params)` is that of the same batch."""
        return params

    def losses(
        self, outputs: Float[jax.Array, "... T V"], targets: Shaped[jax.Array, "... T *Dout"]
    ) -> Float[jax.Array, "... T"]:
        """The loss of each row, before weights."""
        raise NotImplementedError

    def right(
        self, outputs: Float[jax.Array, "... T V"], targets: Shaped[jax.Array, "... T *Dout"]
    ) -> Bool[jax.Array, "... T"]:
        """Whether each row's answer is right."""
        raise NotImplementedError

    def said(self, outputs: Float[jax.Array, "... T V"]) -> Shaped[jax.Array, "... T *Dout"]:
        """The answer of each row as the model gives it, for telling whether two answers are the same."""
        raise NotImplementedError

    def log_probability(
        self, outputs: Float[jax.Array, "... T V"], targets: Shaped[jax.Array, "... T *Dout"]
    ) -> Float[jax.Array, "... T"]:
        """Log-probability (nats) of each row's target."""
        raise NotImplementedError
