"""How well permuted bit vectors can be put in order, by position, and at what squared error."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from positionbias.arrays import Bool
from positionbias.spec import member
from positionbias.theory.base import Curves, Prediction, Theory, check_length


@member("theory", "inverse_permutation_matrix")
@dataclasses.dataclass(frozen=True)
class InversePermutationMatrixTheory(Theory):
    """Exact ceilings of the task of the same name, after Alur et al. 2025 (arXiv 2509.24125).

    Row k of Y stands at a uniformly random slot. A row that sees all of P knows that slot: it is right if it sees the
    slot too, else with chance 2^-d, at a squared error of 0 or d/4. One that sees nothing of P Y guesses whatever it
    sees of P. Under a causal mask the first d rows guess all, and the rows of P Y know the share (d+1)/2d.
    """

    d: int = 6
    scratch: bool = False
    answer_rows: Literal["first", "last"] = "first"

    def curves(self, visible: Bool[np.ndarray, "T T"]) -> Curves | None:
        """Of whole rows of bits. None if an answering row sees some of P Y but not all of P.

        ConfigError if `visible` is not this task's length.
        """
        known = self._known(visible)
        if known is None:
            return None
        right = np.where(known, 1.0, 0.5**self.d)
        return Curves(query=right.mean(axis=1), evidence=right.mean(axis=0), mean=float(right.mean()))

    def predictions(self, visible: Bool[np.ndarray, "T T"]) -> tuple[Prediction, ...]:
        """floor: the least loss, where it is known. ConfigError as above."""
        least = self.squared_error(visible)
        return () if least is None else (Prediction("floor", "loss", least),)

    def squared_error(self, visible: Bool[np.ndarray, "T T"]) -> float | None:
        """The least squared error, summed over features and averaged over answers; None and ConfigError as above."""
        known = self._known(visible)
        return None if known is None else self.d / 4 * float(1 - known.mean())

    def _known(self, visible: Bool[np.ndarray, "T T"]) -> Bool[np.ndarray, "d d"] | None:
        """Whether row k of Y is known if it stands at slot e, [k, e]."""
        length = (4 if self.scratch else 2) * self.d
        check_length(visible, length)
        start = self.d if self.scratch else 0
        first = 0 if self.answer_rows == "first" else length - self.d
        rows = np.asarray(visible, bool)[first : first + self.d]
        held: Bool[np.ndarray, "d d"] = rows[:, start + self.d : start + 2 * self.d]
        settled = rows[:, start : start + self.d].all(axis=1) | ~held.any(axis=1)
        return held if settled.all() else None
