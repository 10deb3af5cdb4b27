"""The theory protocol: exact expected accuracy by position, for whoever may see what. numpy only.

A member is named like the task it speaks of and takes the same arguments.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Bool, Float


@dataclasses.dataclass(frozen=True)
class Curves:
    """The best accuracy any model of a given reach can have, over the task's own distribution."""

    query: Float[np.ndarray, "P"]  # by query slot
    evidence: Float[np.ndarray, "P"]  # by evidence slot
    mean: float


class Theory:
    """What is known in closed form about a task."""

    axis = "theory"

    def curves(self, visible: Bool[np.ndarray, "T T"]) -> Curves | None:
        """Exact curves if row i depends on the inputs j with visible[i, j] only; None where no closed form is known."""
        raise NotImplementedError
