"""In-context linear regression: a linear map is told by examples alone, and applied to a new point."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import WITHIN, Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task
from positionbias.tokens import Tokens, sequential

EXAMPLE_ROLE, QUERY_ROLE = range(2)


@member("tasks", "in_context_regression")
@dataclasses.dataclass(frozen=True)
class InContextRegression(Task):
    """Predict y of a new x from examples (x, y) of one linear map, as He et al. 2025 (arXiv 2503.12734) set it up.

    x has independent standard normal features, the map beta ~ N(0, I/dimension) is drawn for each sequence, and
    y = beta . x + N(0, noise). A row is [x ; y]; the last is [x_q ; 0] and asks for y_q, which has noise of its own.

    One sample of `in_context_regression(dimension=1, examples=5)`:

        input    0,0.2 -1.2,0.8 -1.9,1.4 -0.6,0.6 -1,0.6 1.1,0
        target   .     .        .        .        .      -1.2

    The answer is a number, so its squared error is what to look at; right is an answer within 1/2. The order of the
    examples tells nothing, and an answer needs them all: `evidence` runs through all of them and ends at the one that
    would tell the most about y_q by itself, whose slot is the evidence slot. Every example is a segment.

    The paper's model is one layer of softmax attention without positions, whose last row must not attend to itself:
    `model.mask` is "~sliding_window(1)". Objective: "squared_error".
    """

    dimension: int = 5
    examples: int = 40
    noise: float = 0.1

    query_axis = "query"
    evidence_axis = "slot of the most telling example"
    movable = True
    slots_are_segments = True

    def __post_init__(self) -> None:
        require(1 <= self.dimension <= 64, "dimension", self.dimension, "a whole number from 1 to 64")
        most = LONGEST - 1
        require(2 <= self.examples <= most, "examples", self.examples, f"a whole number from 2 to {most}")
        require(1e-3 <= self.noise <= 1e3, "noise", self.noise, "a variance from 0.001 to 1000")

    # ---- static

    @property
    def input(self) -> Size:
        return Size("vectors", self.dimension + 1)

    @property
    def output(self) -> Size:
        return Size("vectors", 1)

    def conditions(self) -> tuple[Condition, ...]:
        return (Condition("train"),)

    def stretched(self, factor: int) -> Task:
        return dataclasses.replace(self, examples=self.examples * factor)

    def length(self, condition: Condition) -> int:
        return self.examples + 1

    def context_length(self, condition: Condition) -> int:
        return self.examples

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([self.examples])

    def tokens(self, condition: Condition) -> Tokens:
        segment = np.arange(1, self.examples + 2, dtype=np.int32)
        segment[-1] = 0
        role = np.where(segment > 0, EXAMPLE_ROLE, QUERY_ROLE).astype(np.int32)
        return sequential(self.examples + 1, segment=segment, role=role)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        return {"query": np.ones(1), "evidence": np.full(self.examples, 1 / self.examples)}

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        n, d = self.examples, self.dimension
        drawn = jax.random.normal(key, ((n + 1) * (d + 1) + d,))
        beta = drawn[:d] / math.sqrt(d)
        x, noise = jnp.split(drawn[d:].reshape(n + 1, d + 1), [d], axis=-1)
        y = x @ beta + math.sqrt(self.noise) * noise[:, 0]
        asked = x[-1]
        # By itself an example lowers the variance of y_q by (x . x_q)^2 / d (d noise + |x|^2).
        told = jnp.square(x[:-1] @ asked) / (d * self.noise + jnp.sum(jnp.square(x[:-1]), axis=-1))
        slot = jnp.argmax(told).astype(jnp.int32)[None]
        zero = jnp.zeros(1, jnp.int32)
        return Batch(
            inputs=jnp.concatenate([x, y.at[-1].set(0.0)[:, None]], axis=-1),
            targets=jnp.zeros((n + 1, 1)).at[-1].set(y[-1]),
            weights=jnp.zeros(n + 1).at[-1].set(1.0),
            tokens=self.tokens(condition),
            query=zero + n,
            evidence=(slot + 1 + jnp.arange(n, dtype=jnp.int32))[None] % n,
            order=zero,
            distance=n - slot,
            n_distractors=zero,
            source=zero - 1,
            query_slot=zero,
            evidence_slot=slot,
        )

    # ---- judged

    def _seen(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The examples that the last row sees, zero elsewhere, f32[n, d] and f32[n]; x_q; whether each is seen."""
        row = visible[example.query[0]]
        inputs = jnp.where(row[:, None], example.inputs, 0.0)
        return inputs[:-1, :-1], inputs[:-1, -1], inputs[-1, :-1], row

    def _posterior(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean f32[d] and covariance f32[d, d] of beta, given the examples seen."""
        x, y, _, _ = self._seen(example, visible)
        covariance = jnp.linalg.inv(self.dimension * jnp.eye(self.dimension) + x.T @ x / self.noise)
        return covariance @ (x.T @ y) / self.noise, covariance

    def _rules(self, example: Batch, visible: jax.Array) -> dict[str, Float[jax.Array, "A"]]:
        """What simple rules answer, minus the target."""
        x, y, asked, row = self._seen(example, visible)
        seen = row[:-1].astype(jnp.float32)
        mean = jnp.sum(x, axis=0) / jnp.maximum(jnp.sum(seen), 1)
        step = 1 / (jnp.sum(seen) + self.dimension * (1 + self.noise))
        last = jnp.max(jnp.where(row[:-1], jnp.arange(self.examples), 0))
        said = {
            "chance": jnp.zeros(()),
            "majority": jnp.zeros(()),
            "nearest": y[last],
            "gradient_step": step * (y * seen) @ ((x - mean) @ asked),
            "order_free": self._posterior(example, visible)[0] @ asked,
        }
        target = example.targets[example.query[0], 0]
        return {name: (value - target)[None] for name, value in said.items()}

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact: that y_q is within 1/2 of the mean of its posterior. nan if examples are seen but x_q is not."""
        _, _, asked, row = self._seen(example, visible)
        variance = self.noise + asked @ self._posterior(example, visible)[1] @ asked
        known = jax.scipy.special.erf(WITHIN / jnp.sqrt(2 * variance))
        blind = jnp.where(jnp.any(row), jnp.nan, self._blind())
        return jnp.where(row[-1], known, blind)[None]

    def _blind(self) -> float:
        """Probability that 0 is right: y_q is Gaussian with variance noise + r^2 / d, r the length of x_q."""
        length = (np.arange(20_000) + 0.5) / 20_000 * (math.sqrt(self.dimension) + 9)
        density = np.exp((self.dimension - 1) * np.log(length) - length**2 / 2 - self.dimension)
        variance = self.noise + length**2 / self.dimension
        right = np.array([math.erf(z) for z in WITHIN / np.sqrt(2 * variance)])
        return float(np.average(right, weights=density))

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: 0; nearest: y of the last example seen, or 0; gradient_step: a step of gradient descent
        on the examples seen; order_free: ridge regression.

        Each says whether it is right. The step starts at 0, on x without their mean, and has the length that is best
        on average. Ridge regression is the mean of the posterior, which no other rule beats.
        """
        rules = self._rules(example, visible)
        return {name: (jnp.abs(off) < WITHIN).astype(jnp.float32) for name, off in rules.items()}

    def losses(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """floor: exact, what ridge regression expects; chance, nearest, gradient_step: see `baselines`."""
        _, _, asked, row = self._seen(example, visible)
        mean, covariance = self._posterior(example, visible)
        unasked = mean @ mean + jnp.trace(covariance)
        floor = self.noise + jnp.where(row[-1], asked @ covariance @ asked, unasked)
        rules = self._rules(example, visible)
        shown = {name: jnp.square(rules[name]) for name in ("chance", "nearest", "gradient_step")}
        return {"floor": floor[None], **shown}
