"""How well one layer of softmax attention regresses in context, beside gradient descent and ridge regression."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from positionbias.arrays import WITHIN, Bool
from positionbias.spec import member
from positionbias.theory.base import Curves, Prediction, Theory, check_length


@member("theory", "in_context_regression")
@dataclasses.dataclass(frozen=True)
class InContextRegressionTheory(Theory):
    """Mean squared errors of predictors for the task of the same name, after He et al. 2025 (arXiv 2503.12734).

    With d the dimension, L the examples and s the variance of the noise. At the paper's d = 5, L = 40, s = 0.1:

        zero             1.1     exact
        one_head         0.372   approximate; 0.406 simulated, and 0.403 at omega = 0.5
        two_heads        0.221   approximate; equal to gradient_step in the limit, where the exact error is 0.243
        gradient_step    0.243   exact
        ridge            0.1141  approximate; 0.11446 simulated, the least there is
    """

    dimension: int = 5
    examples: int = 40
    noise: float = 0.1

    def curves(self, visible: Bool[np.ndarray, "T T"]) -> Curves | None:
        """Of answers within 1/2, if the last row sees no example. None if it does.

        ConfigError if `visible` is not this task's length.
        """
        length = self.examples + 1
        check_length(visible, length)
        if np.asarray(visible)[-1, :-1].any():
            return None
        right = self._within()
        return Curves(query=np.full(1, right), evidence=np.full(self.examples, right), mean=right)

    def predictions(self, visible: Bool[np.ndarray, "T T"]) -> tuple[Prediction, ...]:
        """The errors listed above, which are the losses; of zero alone unless the last row sees all.

        ConfigError as above.
        """
        check_length(visible, self.examples + 1)
        zero = Prediction("zero", "loss", self.zero())
        if not np.asarray(visible)[-1].all():
            return (zero,)
        return (
            zero,
            Prediction("one_head", "loss", self.one_head(), exact=False),
            Prediction("two_heads", "loss", self.two_heads(), exact=False),
            Prediction("gradient_step", "loss", self.gradient_step()),
            Prediction("ridge", "loss", self.ridge(), exact=False),
        )

    def _within(self) -> float:
        """Probability that |y| < 1/2: the integral of y's characteristic function against that of the interval."""
        # The trapezoidal rule is exact to rounding: what is integrated is smooth and has died out at the ends.
        t = np.linspace(-9, 9, 200_001) / math.sqrt(self.noise)
        characteristic = np.exp(-self.noise * t**2 / 2) * (1 + t**2 / self.dimension) ** (-self.dimension / 2)
        return float(np.sum(characteristic * WITHIN * np.sinc(WITHIN * t / np.pi)) * (t[1] - t[0]) / np.pi)

    def zero(self) -> float:
        """The error of saying 0. Exact."""
        return 1 + self.noise

    def softmax(self, omega: list[float], mu: list[float] | None = None) -> float:
        """The error of sum_h mu_h sum_i softmax_i(omega_h x_i . x_q) y_i, by default with the best mu.

        The paper's approximation for large L; too low by some hundredths at the paper's sizes.
        """
        w = np.asarray(omega, np.float64)
        spread = np.outer(w, w)
        gram = spread + self.zero() / self.examples * np.exp(self.dimension * spread)
        m = np.linalg.solve(gram, w) if mu is None else np.asarray(mu, np.float64)
        return float(self.zero() - 2 * m @ w + m @ gram @ m)

    @property
    def best_omega(self) -> float:
        """The best omega of one head, in the approximation of `softmax`."""
        return 1 / math.sqrt(self.dimension)

    def one_head(self) -> float:
        """The least error of one head, in the approximation of `softmax`."""
        return self.softmax([self.best_omega])

    def two_heads(self) -> float:
        """The least error of two heads or more: of omega and -omega as both go to 0, in the same approximation."""
        return self.zero() - 1 / (1 + self.zero() * self.dimension / self.examples)

    def gradient_step(self) -> float:
        """The error of a step of gradient descent from 0 on x without their mean, of the best length. Exact.

        It says eta sum_i y_i (x_i - mean x) . x_q with eta = 1 / (L + d + d s), which is what two heads come to.
        """
        # sum_i (x_i - mean)(x_i - mean)' is Wishart with n = L - 1 degrees, E W = n I and E W W = n (n + d + 1) I.
        n, d = self.examples - 1, self.dimension
        return self.zero() - n / (n + d + 1 + d * self.noise)

    def ridge(self) -> float:
        """The error of the posterior mean, which nothing beats; E tr (d I + X'X/s)^-1 as for large d and L."""
        d, s = self.dimension, self.noise
        # u = d / (d + L / (s + u)) for the variance u of beta . x_q
        half = (d * s + self.examples - d) / (2 * d)
        return s + math.sqrt(half**2 + s) - half
