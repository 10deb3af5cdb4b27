"""Which driver computes an attention: the first of its platform's ladder that can."""

from __future__ import annotations

from positionbias.kernels import drivers
from positionbias.kernels.drivers import Choice, Driver, always
from positionbias.kernels.softmax_attention import cudnn, mosaic_gpu, mosaic_tpu, xla, xla_chunked
from positionbias.kernels.softmax_attention.problem import Problem

__all__ = ["DRIVERS", "Choice", "check_impl", "choose", "ladder"]

LONG = 512  # queries from which a CPU takes chunks


def _short(problem: Problem, platform: str) -> str | None:
    queries = problem.sizes[1]
    return f"of {queries} queries, chunks are faster and smaller" if queries >= LONG else None


XLA_DENSE = Driver("xla_dense", xla.dense, always)
XLA_CHUNKED = Driver("xla_chunked", xla_chunked.chunked, always)
MOSAIC_TPU, MOSAIC_TPU_INTERPRET = drivers.by_pallas("mosaic_tpu", mosaic_tpu)
CUDNN = Driver("cudnn", cudnn.run, cudnn.unsupported_reason)
# Only where it is named: see there.
MOSAIC_GPU, MOSAIC_GPU_INTERPRET = drivers.by_pallas("mosaic_gpu", mosaic_gpu)
DRIVERS = {
    driver.name: driver
    for driver in (
        XLA_DENSE,
        XLA_CHUNKED,
        CUDNN,
        MOSAIC_TPU,
        MOSAIC_TPU_INTERPRET,
        MOSAIC_GPU,
        MOSAIC_GPU_INTERPRET,
    )
}


def ladder(problem: Problem, platform: str) -> list[tuple[Driver, str | None]]:
    """The drivers of a platform in the order they are tried, and why each cannot or should not; the last can."""
    if platform == "cpu":
        return [(XLA_DENSE, _short(problem, platform)), (XLA_CHUNKED, None)]
    if platform == "tpu":
        return [(MOSAIC_TPU, mosaic_tpu.unsupported_reason(problem, platform)), (XLA_CHUNKED, None)]
    if platform == "gpu":
        return [(CUDNN, cudnn.unsupported_reason(problem, platform)), (XLA_CHUNKED, None)]
    return [(XLA_CHUNKED, None)]


def choose(problem: Problem, impl: str | None, platform: str | None = None) -> Choice:
    """The driver `impl`, or the first of the ladder; ConfigError with the reason if the one named cannot."""
    return drivers.choose(problem, impl, platform, DRIVERS, ladder)


def check_impl(impl: str | None) -> None:
    """Raise ConfigError unless `impl` is None or names a driver."""
    drivers.check_impl(impl, DRIVERS)
