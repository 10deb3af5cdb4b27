"""Which driver computes a corrected recurrence."""

from __future__ import annotations

from positionbias.kernels import drivers
from positionbias.kernels.delta_recurrence import mosaic_gpu, mosaic_tpu, xla_chunked
from positionbias.kernels.delta_recurrence.problem import Problem
from positionbias.kernels.drivers import Choice, Driver, always

XLA_CHUNKED = Driver("xla_chunked", xla_chunked.chunked, always)
MOSAIC_TPU, MOSAIC_TPU_INTERPRET = drivers.by_pallas("mosaic_tpu", mosaic_tpu)
# Only where it is named: see there.
MOSAIC_GPU, MOSAIC_GPU_INTERPRET = drivers.by_pallas("mosaic_gpu", mosaic_gpu)
DRIVERS = {
    driver.name: driver for driver in (XLA_CHUNKED, MOSAIC_TPU, MOSAIC_TPU_INTERPRET, MOSAIC_GPU, MOSAIC_GPU_INTERPRET)
}


def ladder(problem: Problem, platform: str) -> list[tuple[Driver, str | None]]:
    """The drivers of a platform in the order they are tried, and why each cannot or should not; the last can."""
    if platform == "tpu":
        return [(MOSAIC_TPU, mosaic_tpu.unsupported_reason(problem, platform)), (XLA_CHUNKED, None)]
    return [(XLA_CHUNKED, None)]


def choose(problem: Problem, impl: str | None, platform: str | None = None) -> Choice:
    """The driver `impl`, or the first of the ladder; ConfigError with the reason if the one named cannot."""
    return drivers.choose(problem, impl, platform, DRIVERS, ladder)
