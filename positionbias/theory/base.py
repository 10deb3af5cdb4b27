"""The theory protocol: exact expected accuracy by position, and numbers that results are held against. numpy only.

A member is named like the task it speaks of and takes those of its arguments that it needs.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from positionbias.arrays import Bool, Float
from positionbias.spec import ConfigError


@dataclasses.dataclass(frozen=True)
class Curves:
    """The best accuracy any model of a given reach can have, over the task's own distribution."""

    query: Float[np.ndarray, "P"]  # by query slot
    evidence: Float[np.ndarray, "P"]  # by evidence slot
    mean: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What some rule or model would get."""

    name: str  # of the rule or model
    of: Literal["accuracy", "loss", "margin"]  # loss in the units of the objective; of margins nothing is measured
    value: float
    exact: bool = True  # or an approximation
    condition: str = ""  # of the task; "" is the one trained on


class Theory:
    """What is known in closed form about a task. Results print it beside what was measured."""

    axis = "theory"

    def curves(self, visible: Bool[np.ndarray, "T T"]) -> Curves | None:
        """Exact curves if row i depends on the inputs j with visible[i, j] only; None where no closed form is known."""
        return None

    def predictions(self, visible: Bool[np.ndarray, "T T"]) -> tuple[Prediction, ...]:
        """Numbers to hold the results of such a model against; none where they would not speak of it."""
        return ()


def check_length(visible: Bool[np.ndarray, "T T"], length: int) -> None:
    """ConfigError if `visible` is not of the task's length."""
    if visible.shape != (length, length):
        raise ConfigError(f"visible has shape {visible.shape}; allowed: ({length}, {length}), the task's length.")
