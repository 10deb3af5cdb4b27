"""How well the inverse of a permutation can be read out, by position."""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Bool
from positionbias.spec import member
from positionbias.theory.base import Curves, Theory, check_length


@member("theory", "inverse_permutation")
@dataclasses.dataclass(frozen=True)
class InversePermutationTheory(Theory):
    """Exact ceilings of the task of the same name, after Alur et al. 2025 (arXiv 2509.24125).

    The letter asked for at slot k stands at a uniformly random slot e. A row that sees every pointer knows e: it is
    right if it sees slot e too, else with chance 1/s on an alphabet of s. Under a causal mask this is, from 0,
    (k+1)/n + (1-(k+1)/n)/s by slot k, (n-e)/n + (e/n)/s by slot e, and (n+1)/2n + (n-1)/2n * 1/s in the mean; each
    `scratch` token, of which True is n, has every answer see one more slot.
    """

    n: int = 8
    alphabet: int = 16
    scratch: bool | int = False

    def curves(self, visible: Bool[np.ndarray, "T T"]) -> Curves | None:
        """None unless every answering row sees every pointer. ConfigError if `visible` is not this task's length."""
        length = 2 * self.n + (self.n if self.scratch is True else self.scratch)
        check_length(visible, length)
        rows = np.asarray(visible)[length - self.n :]
        if not rows[:, : self.n].all():
            return None
        right = np.where(rows[:, self.n : 2 * self.n], 1.0, 1.0 / self.alphabet)  # [slot k, slot e]
        return Curves(query=right.mean(axis=1), evidence=right.mean(axis=0), mean=float(right.mean()))
