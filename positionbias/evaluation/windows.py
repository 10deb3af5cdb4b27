"""Segments that cannot see each other: parallel context windows and their kin."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from positionbias.assignments.groups import Shared
from positionbias.config.build import Experiment
from positionbias.evaluation.interventions import Intervention, segments_of
from positionbias.evaluation.segment_models import Apart, Rereading, check_operators, check_segments, read_by
from positionbias.operators.base import Operator
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Placed
from positionbias.spec import member
from positionbias.tasks.base import Condition, Task
from positionbias.tokens import Tokens


@member("interventions", "nia")
@dataclasses.dataclass(frozen=True)
class NoInterAttention(Intervention):
    """Segments cannot see each other, in any layer; positions stay. What belongs to none sees as before.

    NIA, of the ablations of PINE (Wang et al. 2024, arXiv 2407.01100). Their order is still told by positions.
    """

    def check(self, task: Task, condition: Condition) -> None:
        segments_of(self, task, condition)

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        check_segments(self, experiment, condition)
        check_operators(self, experiment, _any_mask, "operators that mix by any mask, such as softmax")
        return read_by(experiment, masks=tuple(mask & Apart() for mask in experiment.blueprint.masks))


@member("interventions", "pcw")
@dataclasses.dataclass(frozen=True)
class ParallelWindows(NoInterAttention):
    """Segments cannot see each other and are told the same positions: parallel context windows.

    Ratner et al. 2022 (arXiv 2212.10947): each is told what it would be if it came first, and what follows comes after
    the longest (`model.assignment = "shared"`, whatever the run was trained with). Under `causal` or
    `bidirectional`, outputs do not depend on the order of segments.
    """

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        return read_by(super().model(experiment, condition), assignment=Shared())


@member("interventions", "structured")
@dataclasses.dataclass(frozen=True)
class Structured(ParallelWindows):
    """`pcw` whose K segments count for one together: what is behind them sees them with exponentials divided by K.

    Structured prompting (Hao et al. 2022, arXiv 2212.06713), which multiplies the test input's own exponentials by the
    number of groups instead; both are one softmax. Ours are: that what stands before the segments, which the paper does
    not have, counts as the test input does, and that segments of unequal lengths are aligned on the left, as in `pcw`.
    """

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        check_operators(self, experiment, lambda one: isinstance(one, Softmax), "softmax")
        count = segments_of(self, experiment.task, condition)
        rescaled = tuple(Rescaled(one, count) for one in experiment.blueprint.operators)  # type: ignore[arg-type]
        return read_by(super().model(experiment, condition), operators=rescaled)


def _any_mask(operator: Operator) -> bool:
    """Whether an operator mixes the values of all keys that its mask allows, whichever these are."""
    whole = type(operator).visible is Operator.visible
    return operator.reads == "qkv" and whole and {"causal_self", "noncausal_self"} <= operator.patterns


@dataclasses.dataclass(frozen=True)
class Rescaled(Rereading):
    """`inner` where queries of no segment see tokens of segments with scores less by log `count`."""

    def placed(self, q: jax.Array, k: jax.Array, tokens: Tokens, position: Placed) -> Placed:
        return Lessened(position.scheme, position.params, count=self.count)


@dataclasses.dataclass(frozen=True, eq=False)
class Lessened(Placed):
    """A scheme in its place whose scores between a query of no segment and a key of one are less by log `count`."""

    count: int = dataclasses.field(kw_only=True)

    @property
    def biases(self) -> bool:
        return True

    def bias(self, q: Tokens, k: Tokens, heads: int) -> jax.Array:
        found = self.scheme.bias(q, k, heads, self.params)
        less = jnp.asarray((q.segment == 0) & (k.segment > 0))[..., None, :, :] * -math.log(self.count)
        return less if found is None else found + less
