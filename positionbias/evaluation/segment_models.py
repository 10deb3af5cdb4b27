"""What interventions share that make a model read the segments of an item in another way: checks, and its parts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from positionbias.arrays import Bool, Mapped
from positionbias.config.build import Experiment
from positionbias.evaluation.interventions import LOOKED_AT, Intervention, segments_of
from positionbias.masks.base import Mask
from positionbias.models.decoder_only import DecoderOnly
from positionbias.operators.base import Operator, ScoreOperator, SiteFunction
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import ConfigError, canonical
from positionbias.tasks.base import Batch, Condition, Task, world_of
from positionbias.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Apart(Mask):
    """No segment sees another; what belongs to none (0) sees all and is seen by all."""

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (q.segment == k.segment) | (q.segment == 0) | (k.segment == 0)


@dataclasses.dataclass(frozen=True)
class Across(Mask):
    """Every segment sees all of every other, and nothing else is seen."""

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return (q.segment != k.segment) & (q.segment > 0) & (k.segment > 0)


@dataclasses.dataclass(frozen=True)
class Rereading(Operator):
    """`inner`, a self attention, with a scheme of its own making in the place of the trained one; `count` segments."""

    inner: ScoreOperator
    count: int

    patterns = ScoreOperator.patterns
    uses_products = True
    has_pattern = True

    def placed(self, q: jax.Array, k: jax.Array, tokens: Tokens, position: Placed) -> Placed:
        """What stands for `position`."""
        raise NotImplementedError

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return self.inner.parameters(dims)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Mapped:
        return self.inner.visible(tokens_q, tokens_k, allowed)

    def state_size(self, dims: Dims) -> int:
        return self.inner.state_size(dims)

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        placed = self.placed(q, k, tokens_k, position)
        return self.inner(q, k, v, tokens_q, tokens_k, mask, placed, params, site)


def read_by(experiment: Experiment, **members: Any) -> Experiment:
    """The experiment with other members in its layers (a tuple an axis, one a layer), or another assignment."""
    other = {name: members.pop(name) for name in ("assignment",) if name in members}
    return dataclasses.replace(experiment, blueprint=dataclasses.replace(experiment.blueprint, **members), **other)


def check_segments(change: Intervention, experiment: Experiment, condition: Condition) -> int:
    """The number of segments; ConfigError where a stack of attentions does not read them, one behind the other.

    Of a task whose examples differ, some are looked at.
    """
    count, named = segments_of(change, experiment.task, condition), canonical(change)
    if not isinstance(experiment.architecture, DecoderOnly):
        raise ConfigError(
            f"{named}: model.architecture = {experiment.config.model.architecture} is not read anew; allowed:"
            " decoder_only."
        )
    tokens = _looked_at(experiment.task, condition).tokens
    segment, valid = np.asarray(tokens.segment), np.asarray(tokens.valid)
    inside = (segment > 0) & valid
    begun, ahead = np.cumsum(inside, axis=-1) > 0, np.cumsum(inside[..., ::-1], axis=-1)[..., ::-1] > 0
    if np.any(begun & ahead & ~inside):
        raise ConfigError(
            f"{named}: in condition {condition.name} of the task {canonical(experiment.task)} tokens of no segment"
            " stand between segments; allowed: segments that follow on each other."
        )
    return count


def check_operators(
    change: Intervention, experiment: Experiment, takes: Callable[[Operator], bool], allowed: str
) -> None:
    """Raise ConfigError for a layer whose operator `takes` does not hold of."""
    for layer, operator in enumerate(experiment.blueprint.operators):
        if not takes(operator):
            raise ConfigError(
                f"{canonical(change)}: the operator {canonical(operator)} of layer {layer} cannot be read so; allowed:"
                f" {allowed}."
            )


def check_leaks(change: Intervention, changed: Experiment, condition: Condition) -> None:
    """Raise ConfigError where a row of the changed model can see what it is to say."""
    task, objective = changed.task, changed.objective
    leaks = np.any(np.asarray(changed.reach(condition)) & objective.forbidden(task, condition))
    # The one layout that a config is checked against does not tell what segments of other examples see of each other.
    leaks |= not task.shared_tokens and bool(task.leaks(condition).any())
    if leaks:
        raise ConfigError(
            f"{canonical(change)}: in condition {condition.name} of the task {canonical(task)} a row would see the"
            " answer that it is asked for; allowed: a task that asks behind its segments."
        )


@functools.lru_cache(maxsize=8)
def _looked_at(task: Task, condition: Condition) -> Batch:
    """Some items of the task; of one whose examples share their tokens, these alone."""
    if task.shared_tokens:
        return Batch(**{**dict.fromkeys(Batch._fields), "tokens": task.tokens(condition)})  # type: ignore[arg-type]
    key = jax.random.key(0)
    return jax.jit(lambda key, world: task.batch(key, condition, LOOKED_AT, world))(key, world_of(task, key))
