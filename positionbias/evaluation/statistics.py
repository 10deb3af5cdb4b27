"""Intervals, differences and indices of position bias. The replica (own seed, data and items) is always the unit.

numpy only; scipy is imported for the quantile of Student's t when the first interval is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from positionbias.arrays import Float
from positionbias.spec import ConfigError

LEVEL = 0.95
NORMAL = 1.959964  # how many standard deviations of a normal law hold LEVEL of it
INDICES = ("primacy", "recency", "tilt", "middle_dip")
SOLVED_WITHIN = 0.02  # a replica has solved a task when its mean accuracy is at most this far below its ceiling's mean
DECIDING_REPLICAS = 8  # fewer replicas than this cannot settle a verdict on which they disagree

Values = Sequence[float | None] | Float[np.ndarray, "R"]
Verdict = Literal["solved", "not solved", "partly solved", "undecided"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """Mean over replicas and its 95 % interval; None where there is nothing to say, `n` replicas had a value."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def to_dict(self) -> dict[str, float | None]:
        """{"mean", "low", "high"}, JSON-ready."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


@functools.cache
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def _replicas(values: Values) -> Float[np.ndarray, "R"]:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def interval(values: Values) -> Interval:
    """Student's t interval at 95 % over one value a replica; None or a non-finite value is a replica without one.

    A single replica has a mean and no interval: its `low` and `high` are None, never its mean.
    """
    known = _replicas(values)
    known = known[np.isfinite(known)]
    n = len(known)
    if n == 0:
        return Interval(None, None, None, 0)
    mean = float(known.mean())
    if n == 1:
        return Interval(mean, None, None, 1)
    half = _quantile(n - 1) * float(known.std(ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


def correlation(a: Values, b: Values) -> Interval:
    """Pearson's correlation over replicas of two values of each, and its 95 % interval by Fisher's z, from four on.

    None below three replicas that have both, and where one of the two is the same in all.
    """
    both = np.stack([_replicas(a), _replicas(b)])
    both = both[:, np.isfinite(both).all(axis=0)]
    n = both.shape[1]
    if n < 3 or (np.ptp(both, axis=1) == 0).any():
        return Interval(None, None, None, n)
    r = float(np.clip(np.corrcoef(both)[0, 1], -1, 1))
    if n == 3 or abs(r) == 1:
        return Interval(r, None, None, n)
    half = NORMAL / (n - 3) ** 0.5
    return Interval(r, float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half)), n)


def paired_difference(a: Values, b: Values) -> Interval:
    """Interval of a - b, paired by replica index; a pair with a missing side is left out.

    Raises ConfigError if the two have different numbers of replicas.
    """
    if len(a) != len(b):
        raise ConfigError(f"replicas = {len(a)} and {len(b)} cannot be paired; allowed: the same number on both sides.")
    return interval(_replicas(a) - _replicas(b))


def indices(curve: Float[np.ndarray, "P"]) -> dict[str, float | None]:
    """Primacy, recency, tilt and middle dip of one replica's curve over P positions; all None for P < 3.

    With u = (e + 1/2) / P, F, M and L are the means over u < 1/4, 3/8 <= u < 5/8 and u >= 3/4: primacy = F - M,
    recency = L - M, tilt = F - L, middle_dip = min(primacy, recency). A nan position is left out of its mean, and what
    needs a mean of nothing is None.
    """
    curve = np.asarray(curve, np.float64)
    u = (np.arange(len(curve)) + 0.5) / max(len(curve), 1)  # fewer than 3 positions leave F and M without any
    first = _mean(curve[u < 1 / 4])
    middle = _mean(curve[(u >= 3 / 8) & (u < 5 / 8)])
    last = _mean(curve[u >= 3 / 4])
    primacy, recency = first - middle, last - middle
    found = {"primacy": primacy, "recency": recency, "tilt": first - last, "middle_dip": np.minimum(primacy, recency)}
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def _mean(values: Float[np.ndarray, "P"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def solved(accuracy: Values, ceiling: Values) -> list[bool | None]:
    """Which replicas solved the task: mean accuracy >= mean ceiling - 0.02; None where either is missing."""
    pairs = zip(_replicas(accuracy), _replicas(ceiling), strict=True)
    return [bool(a >= c - SOLVED_WITHIN) if np.isfinite(a) and np.isfinite(c) else None for a, c in pairs]


def share(flags: Sequence[bool | None]) -> float | None:
    """Share of replicas that solved the task, among those of which it is known; None if of none."""
    known = [flag for flag in flags if flag is not None]
    return sum(known) / len(known) if known else None


def undecided(flags: Sequence[bool | None]) -> bool:
    """Whether some but not all replicas solved the task and there are fewer than 8 of them."""
    known = [flag for flag in flags if flag is not None]
    return any(known) and not all(known) and len(known) < DECIDING_REPLICAS


def verdict(flags: Sequence[bool | None]) -> Verdict | None:
    """What the replicas say together; None if of none is known whether it solved the task."""
    part = share(flags)
    if part is None:
        return None
    if undecided(flags):
        return "undecided"
    return "solved" if part == 1 else "not solved" if part == 0 else "partly solved"
