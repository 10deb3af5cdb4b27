"""Which driver computes a corrected recurrence."""

from __future__ import annotations

from positionbias.kernels import drivers
from positionbias.kernels.delta_recurrence import xla_chunked
from positionbias.kernels.delta_recurrence.problem import Problem
from positionbias.kernels.drivers import Choice, Driver, always

XLA_CHUNKED = Driver("xla_chunked", xla_chunked.chunked, always)
DRIVERS = {XLA_CHUNKED.name: XLA_CHUNKED}


def ladder(problem: Problem, platform: str) -> list[tuple[Driver, str | None]]:
    """The drivers of a platform in the order they are tried, and why each cannot or should not; the last can."""
    return [(XLA_CHUNKED, None)]


def choose(problem: Problem, impl: str | None, platform: str | None = None) -> Choice:
    """The driver `impl`, or the first of the ladder; ConfigError with the reason if the one named cannot."""
    return drivers.choose(problem, impl, platform, DRIVERS, ladder)
