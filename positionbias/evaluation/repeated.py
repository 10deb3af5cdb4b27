"""The prompt, given several times."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Mapped
from positionbias.config.build import Experiment
from positionbias.evaluation.interventions import Intervention
from positionbias.spec import ConfigError, canonical, member, require
from positionbias.tasks.base import LONGEST, Condition, Task
from positionbias.tokens import Tokens, joined


@member("interventions", "repeat")
@dataclasses.dataclass(frozen=True)
class Repeat(Intervention):
    """The whole prompt, context and question, is given `times` times, and the last one is answered.

    JRT-prompt (Arora et al. 2024, arXiv 2407.05483): C, Q, C, Q instead of C, Q. Places and positions go on from copy
    to copy, and all but the question of the last copy counts as context. Ours is that copies keep segments, roles,
    frames and scales: a copy of a document is that document, so that masks of groups let it see the others. A row of
    the last copy may know an input from any of its copies, and ceilings are told so. For tasks whose prompts hold no
    answers.
    """

    times: int = 2

    def __post_init__(self) -> None:
        what = f"a whole number from 2 to {LONGEST}"
        require(2 <= self.times <= LONGEST, f"{canonical(self)}: times", self.times, what)

    def check(self, task: Task, condition: Condition) -> None:
        if task.leaks(condition).any():
            raise ConfigError(
                f"{canonical(self)}: in condition {condition.name} of the task {canonical(task)} the prompt holds"
                " answers, which a copy would give away; allowed: a task whose prompts hold none."
            )
        most = LONGEST // task.length(condition)
        what = f"at most {most}, {LONGEST} rows in all with {task.length(condition)} a copy"
        require(self.times <= most, f"{canonical(self)}: times", self.times, what)

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        if experiment.objective.own_tokens:
            raise ConfigError(
                f"{canonical(self)}: the objective {canonical(experiment.objective)} hides inputs or orders them anew;"
                " allowed: objectives that tell no tokens anew, such as next_token."
            )
        return experiment

    def tokens_read(self, tokens: Tokens, task: Task, condition: Condition) -> Tokens:
        rows, told = tokens.length, tokens.position.max(axis=-1, keepdims=True) + 1
        parts = range(self.times)
        return joined(
            [tokens._replace(index=tokens.index + n * rows, position=tokens.position + n * told) for n in parts]
        )

    def inputs_read(self, inputs: jax.Array, task: Task, condition: Condition) -> jax.Array:
        return jnp.concatenate([inputs] * self.times, axis=1)

    def reach(self, experiment: Experiment, condition: Condition, tokens: Tokens | None = None) -> Bool[Mapped, "T T"]:
        task, rows = experiment.task, experiment.task.length(condition)
        whole = experiment.reach(condition, self.tokens_read(tokens or task.tokens(condition), task, condition))
        return whole[-rows:].reshape(rows, self.times, rows).any(axis=1)
