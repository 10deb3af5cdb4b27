"""The objective protocol: the loss, and which inputs a loss row must not depend on."""

from __future__ import annotations

import jax
import numpy as np

from positionbias.arrays import Bool, Float, Key, Shaped
from positionbias.spec import ConfigError
from positionbias.tasks.base import Batch, Condition, Size, Task


class Objective:
    """A loss on rows: row t of the outputs is held against row t of the targets, with the task's weights."""

    axis = "objectives"
    targets: str  # kind of targets it takes: "tokens" or "vectors"

    def check(self, task: Task) -> None:
        """Raise ConfigError if the task's targets are not of the kind this objective takes."""
        if task.output.kind != self.targets:
            raise ConfigError(
                f"objective: {self.spec_name!r} takes targets that are {self.targets}, but the task's are"  # type: ignore[attr-defined]
                f" {task.output.kind}; allowed: an objective for {task.output.kind}."
            )

    def input(self, size: Size) -> Size:
        """Kind and size of what the model reads, given the task's inputs; may add tokens of its own, such as a mask."""
        return size

    def prepare(self, key: Key[jax.Array, ""], batch: Batch) -> Batch:
        """The batch as the model is trained and measured on it: inputs, targets and weights may change, at random.

        Shapes, tokens and where answers stand must not. `key` is another at every step. In evaluation every item
        comes alone, with a key of its own, so that what is drawn for it does not depend on how many are measured.
        """
        return batch

    def forbidden(self, task: Task, condition: Condition) -> Bool[np.ndarray, "T T"]:
        """Where loss row i must not depend on input j; a config whose model reaches there is refused."""
        return task.leaks(condition)

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
