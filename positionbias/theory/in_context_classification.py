"""Where training on in-context classification rests before it tells which label goes with which item."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from positionbias.arrays import Bool
from positionbias.spec import member
from positionbias.theory.base import Prediction, Theory, check_length


@member("theory", "in_context_classification")
@dataclasses.dataclass(frozen=True)
class InContextClassificationTheory(Theory):
    """The plateau of the task of the same name, where a label of the context is said at random.

    A context has items / burstiness classes, equally many items of each.
    """

    items: int = 8
    labels: int = 32
    burstiness: int = 4
    assignment: Literal["uniform", "balanced"] = "uniform"
    p_bursty: float = 1.0
    zipf: float = 0.0

    def predictions(self, visible: Bool[np.ndarray, "T T"]) -> tuple[Prediction, ...]:
        """label_guessing, where the query sees all and every sequence is bursty, of labels that are equally common.

        ConfigError if `visible` is not this task's length.
        """
        check_length(visible, 2 * self.items + 1)
        common = self.assignment == "uniform" and self.zipf > 0
        if self.p_bursty < 1 or common or not np.asarray(visible)[-1].all():
            return ()
        accuracy, loss = self.label_guessing()
        return Prediction("label_guessing", "accuracy", accuracy), Prediction("label_guessing", "loss", loss)

    def label_guessing(self) -> tuple[float, float]:
        """Accuracy, and loss (nats) if each label of the context has its share of the items as probability.

        Labels of a context are different if `balanced` (Reddy 2024, arXiv 2312.03002), and with k classes accuracy is
        1/k, loss log k; or independent and uniform (Wu et al. 2025, arXiv 2502.01951), and any number of the other
        classes, binomially many, have the answer's label too.
        """
        kinds = self.items // self.burstiness
        if self.assignment == "balanced":
            return 1 / kinds, float(np.log(kinds))
        chance = np.ones(1)  # of 0, 1, ... others with the answer's label
        for _ in range(kinds - 1):
            chance = np.convolve(chance, [1 - 1 / self.labels, 1 / self.labels])
        share = np.arange(1, kinds + 1) / kinds
        return float(chance @ share), float(-chance @ np.log(share))
