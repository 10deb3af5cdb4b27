"""Change point: at which step the loss fell, how much of its course that one fall is, and if chance does as much."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Labels, Subject
from positionbias.arrays import Float, Key, Tree
from positionbias.evaluation.loading import LoadedRun
from positionbias.spec import ConfigError, member, require
from positionbias.training.writers import read_metrics

FEWEST = 4  # lines of a history: of three, any point would do
MOST = 100_000


def explained(curves: Float[jax.Array, "... M"]) -> Float[jax.Array, "... M-1"]:
    """Share of the variance of a curve that two levels explain, the second from place 1, 2, ... on; 0 of a flat one."""
    count = curves.shape[-1]
    place = jnp.arange(1, count)
    away = curves - jnp.mean(curves, axis=-1, keepdims=True)
    # Two levels around the mean: k m1 + (n - k) m2 = 0, so the first sum says all.
    before = jnp.cumsum(away, axis=-1)[..., :-1]
    between = jnp.square(before) / (place * (count - place)) * count
    total = jnp.sum(jnp.square(away), axis=-1, keepdims=True)
    return between / jnp.where(total > 0, total, 1.0)


@member("analyses", "change_point")
@dataclasses.dataclass(frozen=True)
class ChangePoint(Analysis):
    """The step at which the loss of the run's own history is best split into two levels (least squares, Bai 1994).

    Abrupt learning is a plateau, a fall and a plateau (Reddy 2024, arXiv 2312.03002): two levels explain most of the
    variance of such a curve, three quarters of that of a straight line. "loss" is the logged training loss, nats, up to
    the checkpoint, by its step; "explained" that share, had the second level begun there (0 at the first), and "most"
    the largest of it, at the step "at"; "before" and "after" are the levels.

    The null has the same increments in `orders` others, so that it falls as far by the same steps: "permuted" is
    the mean of its "most", and "chance" the share of orders that reach the curve's own, which counts as one of them. It
    tells whether falls come together: where one interval has all of it, every order does, and "sharpest", the largest
    fall of one interval as a share of that from the first to the last, is about 1; log more often there.
    "log_probability" is that of the right answers of fresh items with the weights that are asked, nats.
    """

    orders: int = 1000

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("loss", "explained"), ("step",)),
        **dict.fromkeys(("at", "most", "permuted", "chance", "before", "after", "sharpest", "log_probability"), ()),
    }
    shown = "explained"
    any_rows = True

    def __post_init__(self) -> None:
        require(1 <= self.orders <= MOST, "orders", self.orders, f"a whole number from 1 to {MOST}")

    def reads(self) -> tuple[str, ...]:
        return ()

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        return {"step": tuple(str(line["step"]) for line in _history(subject.run))}

    def given(self, run: LoadedRun) -> Tree:
        lines = _history(run)
        loss = jnp.asarray([line["loss"] for line in lines], jnp.float32).T
        return {
            "loss": loss,
            "step": jnp.tile(jnp.asarray([line["step"] for line in lines], jnp.float32), (len(loss), 1)),
        }

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        asked, drawn = jax.random.split(key)
        loss, step = subject.given["loss"], subject.given["step"]
        share = explained(loss)
        at = jnp.argmax(share)
        second = jnp.arange(len(loss)) > at
        falls = jnp.diff(loss)

        def other(key: Key[jax.Array, ""]) -> Float[jax.Array, ""]:
            curve = jnp.cumsum(jax.random.permutation(key, falls))
            return jnp.max(explained(jnp.concatenate([jnp.zeros(1), curve])))

        null = jax.lax.map(other, jax.random.split(drawn, self.orders))
        total = loss[0] - loss[-1]
        most = share[at]
        return {
            "loss": loss,
            "explained": jnp.concatenate([jnp.zeros(1), share]),
            "at": step[at + 1],
            "most": most,
            "permuted": jnp.mean(null),
            # Sums of the same numbers in another order differ by rounding.
            "chance": (1 + jnp.sum(null >= most - 1e-5)) / (1 + self.orders),
            "before": jnp.sum(jnp.where(second, 0, loss)) / jnp.sum(~second),
            "after": jnp.sum(jnp.where(second, loss, 0)) / jnp.sum(second),
            "sharpest": jnp.where(total > 0, jnp.max(-falls) / jnp.where(total > 0, total, 1.0), 0.0),
            "log_probability": subject.accuracy(subject.batch(asked))["log_probability"],
        }


def _history(run: LoadedRun) -> list[dict[str, Any]]:
    """The lines of a run's metrics up to its checkpoint. Raises ConfigError where they are too few, or have no loss."""
    lines = [line for line in read_metrics(run.workdir / "metrics.jsonl") if line["step"] <= run.step]
    whole = all(loss is not None for line in lines for loss in line.get("loss", [None]))
    if len(lines) < FEWEST or not whole:
        raise ConfigError(
            f"--analyses: change_point reads the losses in metrics.jsonl of {str(run.workdir)!r}, where {len(lines)}"
            f" lines stand up to step {run.step}{'' if whole else ', not all with losses'}; allowed: {FEWEST} or more"
            " lines of losses (train.log_every sets the steps between two)."
        )
    return lines
