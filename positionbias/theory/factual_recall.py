"""How well facts and implications can be recalled, and what the best-fitting matrices say of those never shown."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from positionbias.arrays import Bool, Float
from positionbias.spec import member
from positionbias.theory.base import Curves, Prediction, Theory, check_length


@member("theory", "factual_recall")
@dataclasses.dataclass(frozen=True)
class FactualRecallTheory(Theory):
    """Exact ceilings of the task of the same name, and the margins of Huang et al. 2025 (arXiv 2506.10887).

    The margins are those of the theory's form, where attention gives onehot(subject) + onehot(relation) and one matrix
    W turns it into logits of facts and implications: the least by which a held-out subject's implication stands above
    the other implications, while every trained answer stands at least 1 above all others. Trained to the end,
    W = W_O W_V' has the least nuclear norm that does so, and W as one matrix the least Frobenius norm.
    """

    groups: int = 20
    bridges: int = 1
    held_out: int = 3
    noise: int = 13
    noise_kinds: int = 5

    def curves(self, visible: Bool[np.ndarray, "T T"]) -> Curves | None:
        """Of the condition trained on. ConfigError if `visible` is not this task's length."""
        check_length(visible, self.noise + 3 if self.noise else 2)
        row, places = np.asarray(visible, bool)[-1], self.noise + 1
        right = np.zeros((2, places))  # by relation asked and place of the subject
        for place in range(places):
            # The relation is anywhere later, before the end token if there is one.
            seen = np.mean(row[place + 1 : self.noise + 2])
            # Of facts, half are a bridge's: who does not see the relation says either of two answers for a bridge.
            known = np.array([3 / 4, 1 / 2]) if row[place] else np.full(2, 2 / 3 / self.groups)
            sure = 1.0 if row[place] else 1 / self.groups
            right[:, place] = seen * sure + (1 - seen) * known
        share: Float[np.ndarray, "2"] = np.array([2 / 3, 1 / 3])
        evidence = share @ right
        return Curves(query=right.mean(axis=1), evidence=evidence, mean=float(evidence.mean()))

    def predictions(self, visible: Bool[np.ndarray, "T T"]) -> tuple[Prediction, ...]:
        """Of the condition held_out: both margins, and the combined matrix's loss. In the theory's form (`noise=0`).

        ConfigError as above.
        """
        check_length(visible, self.noise + 3 if self.noise else 2)
        if self.noise or not np.asarray(visible)[-1].all():
            return ()
        return (
            Prediction("factorised", "margin", self.factorised_margin(), condition="held_out"),
            Prediction("combined", "margin", self.combined_margin(), condition="held_out"),
            Prediction("combined", "loss", self.combined_loss(), condition="held_out"),
        )

    def factorised_margin(self) -> float:
        """The margin of the matrix of least nuclear norm: min(sqrt(p / q), 1) for p bridges and q others, exact.

        Written in the differences between groups, W is a 2 x 2 matrix, [[a, b], [c, d]], a and c for bridges, b and d
        for held-out subjects, a and b for facts, c and d for implications, each weighted by the root of the number of
        subjects. All but d are trained and at their least, sqrt(p), sqrt(q) and sqrt(p); d is free, and the norm least
        at d = a. The margin is d / sqrt(q), the paper's bound (p / (p + q), also quoted, is below it). Were facts never
        to be told from implications, a could grow at no cost until a a = b c, and the margin with it to (p / q)^(1/4):
        that way the norm rises slowly, and a model that is not trained to the end may lie above the exact value where p
        < q.
        """
        return min(math.sqrt(self.bridges / self.held_out), 1.0)

    def combined_margin(self) -> float:
        """The margin of the matrix of least Frobenius norm: none, as nothing that it fits tells implications apart."""
        return 0.0

    def combined_loss(self) -> float:
        """The least loss (nats) on held-out implications of a model that cannot tell them apart: log(groups)."""
        return math.log(self.groups)
