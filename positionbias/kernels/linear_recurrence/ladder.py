"""Which driver computes a recurrence."""

from __future__ import annotations

from positionbias.kernels import drivers
from positionbias.kernels.drivers import Choice, Driver, always
from positionbias.kernels.linear_recurrence import mosaic_gpu, mosaic_tpu, xla_chunked, xla_quadratic
from positionbias.kernels.linear_recurrence.problem import Problem

LONG = 64  # steps from which chunks are faster

XLA_QUADRATIC = Driver("xla_quadratic", xla_quadratic.quadratic, xla_quadratic.unsupported_reason)
XLA_CHUNKED = Driver("xla_chunked", xla_chunked.chunked, always)
MOSAIC_TPU, MOSAIC_TPU_INTERPRET = drivers.by_pallas("mosaic_tpu", mosaic_tpu)
# Only where it is named: see there.
MOSAIC_GPU, MOSAIC_GPU_INTERPRET = drivers.by_pallas("mosaic_gpu", mosaic_gpu)
DRIVERS = {
    driver.name: driver
    for driver in (
        XLA_QUADRATIC,
        XLA_CHUNKED,
        MOSAIC_TPU,
        MOSAIC_TPU_INTERPRET,
        MOSAIC_GPU,
        MOSAIC_GPU_INTERPRET,
    )
}


def _short(problem: Problem, platform: str) -> str | None:
    if problem.sizes[1] > LONG:
        return f"of {problem.sizes[1]} steps, chunks are faster and smaller"
    if problem.chunk is not None:
        return "chunk is told"
    if problem.log_decay is not None or problem.value_log_decay is not None:
        return "with decays, chunks are faster backwards"
    return None


def ladder(problem: Problem, platform: str) -> list[tuple[Driver, str | None]]:
    """The drivers of a platform in the order they are tried, and why each cannot or should not; the last can."""
    if platform == "tpu":
        return [(MOSAIC_TPU, mosaic_tpu.unsupported_reason(problem, platform)), (XLA_CHUNKED, None)]
    return [(XLA_QUADRATIC, _short(problem, platform)), (XLA_CHUNKED, None)]


def choose(problem: Problem, impl: str | None, platform: str | None = None) -> Choice:
    """The driver `impl`, or the first of the ladder; ConfigError with the reason if the one named cannot."""
    return drivers.choose(problem, impl, platform, DRIVERS, ladder)
