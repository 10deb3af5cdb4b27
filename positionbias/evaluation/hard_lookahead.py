"""Look-ahead without a soft edge, as a model that waits for what comes after would have it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.config.build import Experiment
from positionbias.evaluation.interventions import Intervention
from positionbias.evaluation.segment_models import read_by
from positionbias.operators.lookahead import Lookahead
from positionbias.spec import ConfigError, canonical, member
from positionbias.tasks.base import Condition


@member("interventions", "hard_lookahead")
@dataclasses.dataclass(frozen=True)
class HardLookahead(Intervention):
    """Layers with the operator `lookahead` see as many places ahead as each query asks for, rounded, and no farther.

    Ours, beside `lookahead`: when training is over, a key is seen whole or not at all, so that a query waits for a
    number of tokens that is known.
    """

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        operators = experiment.blueprint.operators
        if not any(isinstance(one, Lookahead) for one in operators):
            raise ConfigError(
                f"{canonical(self)}: model.operator = {experiment.config.model.operator} learns no look-ahead; allowed:"
                " a model with the operator lookahead."
            )
        return read_by(experiment, operators=tuple(_rounded(one) for one in operators))


def _rounded(operator: object) -> object:
    return Rounded(**vars(operator)) if isinstance(operator, Lookahead) else operator


@dataclasses.dataclass(frozen=True)
class Rounded(Lookahead):
    """`lookahead` with the places that a query asks for rounded, halves to even."""

    def gated(self, ahead: jax.Array, away: jax.Array) -> tuple[jax.Array, jax.Array]:
        return away <= jnp.round(ahead), jnp.zeros_like(ahead)
