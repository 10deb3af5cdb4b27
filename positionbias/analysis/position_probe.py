"""Position probe: what a linear map can tell of a row's position from the stream, layer by layer."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Subject, recorded
from positionbias.arrays import Float, Key
from positionbias.spec import member, require


def explained(
    train: Float[jax.Array, "M D"], test: Float[jax.Array, "M D"], target: Float[jax.Array, "M"], penalty: float
) -> Float[jax.Array, ""]:
    """R^2: the share of the target's variance, 0 if it has none, that ridge regression of `train` tells in `test`."""
    mean, spread = jnp.mean(train, axis=0), jnp.std(train, axis=0) + 1e-6
    x, y = (train - mean) / spread, target - jnp.mean(target)
    inner = jnp.matmul(x.T, x, precision="highest") / len(x) + penalty * jnp.eye(x.shape[1])
    wanted = jnp.matmul(x.T, y, precision="highest") / len(x)
    # By conjugate gradients, as a solver of LAPACK's in several programs at once has hung on CPUs.
    times = functools.partial(jnp.matmul, inner, precision="highest")
    weights, _ = jax.scipy.sparse.linalg.cg(times, wanted, tol=1e-6, maxiter=4 * x.shape[1])
    error = y - jnp.matmul((test - mean) / spread, weights, precision="highest")
    total = jnp.sum(jnp.square(y))
    return jnp.where(total > 0, 1 - jnp.sum(jnp.square(error)) / jnp.where(total > 0, total, 1.0), 0.0)


@member("analyses", "position_probe")
@dataclasses.dataclass(frozen=True)
class PositionProbe(Analysis):
    """R^2 of a ridge regression from the stream behind every layer to the row's number, on items it was not fitted to.

    What models without position encoding know of positions (Haviv et al. 2022, arXiv 2203.16634, with a classifier).
    Half of the items fit, the others judge; features are standardised, `penalty` is per feature and row. "shuffled" is
    the same with the numbers of rows in another order, the chance of so many features; the models before training say
    what the architecture tells without being taught. 0 where there is one row alone, as in a decoder that answers once.
    """

    penalty: float = 1e-3

    axes: ClassVar[Axes] = {"explained": ("layer",), "shuffled": ("layer",)}
    shown = "explained"
    alike = (STREAM,)
    any_rows = True

    def __post_init__(self) -> None:
        require(0 < self.penalty <= 1e6, "penalty", self.penalty, "a number above 0, up to 1000000")

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def check(self, subject: Subject) -> None:
        require(subject.items >= 2, "items", subject.items, "2 or more, to fit and to judge")

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        drawn, order = jax.random.split(key)
        count = subject.items // 2

        batches = (subject.batch(one, count) for one in jax.random.split(drawn))
        fitted, judged = (recorded(subject, layers, STREAM, batch) for batch in batches)  # [L, B, T, D]
        rows = fitted.shape[2]
        train, test = (x.reshape(len(layers), -1, x.shape[-1]) for x in (fitted, judged))
        number = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.float32), (count, rows)).reshape(-1)
        target = {"explained": number, "shuffled": jax.random.permutation(order, number)}
        each = jax.vmap(explained, in_axes=(0, 0, None, None))
        return {name: each(train, test, y, self.penalty) for name, y in target.items()}
