"""Which driver computes an attention: the first of its platform's ladder that can."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from positionbias.errors import ConfigError, unknown
from positionbias.kernels.softmax_attention import cudnn, mosaic_gpu, mosaic_tpu, xla, xla_chunked
from positionbias.kernels.softmax_attention.problem import Problem

PLATFORMS = ("cpu", "gpu", "tpu")
LONG = 512  # queries from which a CPU takes chunks, where these leave keys out
LONGER = 1024  # and where they do not


@dataclasses.dataclass(frozen=True)
class Driver:
    """A way to compute an attention."""

    name: str
    run: Callable[[Problem], Any] = dataclasses.field(repr=False)
    # of a problem on a platform; None if it can
    unsupported_reason: Callable[[Problem, str], str | None] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen, on which platform, and why the drivers before it were not."""

    driver: Driver
    problem: Problem = dataclasses.field(repr=False)
    platform: str
    passed_over: tuple[tuple[str, str], ...]


def _always(problem: Problem, platform: str) -> None:
    return None


def _short(problem: Problem, platform: str) -> str | None:
    queries = problem.sizes[1]
    if queries >= LONGER or (queries >= LONG and xla_chunked.leaves_out(problem)):
        return f"of {queries} queries, chunks are faster and smaller"
    return None


XLA_DENSE = Driver("xla_dense", xla.dense, _always)
XLA_CHUNKED = Driver("xla_chunked", xla_chunked.chunked, _always)
MOSAIC_TPU = Driver("mosaic_tpu", mosaic_tpu.run, mosaic_tpu.unsupported_reason)
MOSAIC_TPU_INTERPRET = Driver(
    "mosaic_tpu_interpret",
    functools.partial(mosaic_tpu.run, interpret=True),
    mosaic_tpu.interpret_unsupported_reason,
)
CUDNN = Driver("cudnn", cudnn.run, cudnn.unsupported_reason)
MOSAIC_GPU = Driver("mosaic_gpu", mosaic_gpu.run, mosaic_gpu.unsupported_reason)  # only where it is named: see there
MOSAIC_GPU_INTERPRET = Driver(
    "mosaic_gpu_interpret",
    functools.partial(mosaic_gpu.run, interpret=True),
    mosaic_gpu.interpret_unsupported_reason,
)
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
    if platform is not None and platform not in PLATFORMS:
        raise unknown("platform", "platform", platform, PLATFORMS)
    platform = platform or current_platform()
    if impl is not None:
        check_impl(impl)
        why = DRIVERS[impl].unsupported_reason(problem, platform)
        if why is not None:
            raise ConfigError(f"impl = {impl!r} cannot do this: {why}; allowed: another driver, or None to choose one.")
        return Choice(DRIVERS[impl], problem, platform, ())
    passed: list[tuple[str, str]] = []
    for driver, why in ladder(problem, platform):
        if why is None:
            return Choice(driver, problem, platform, tuple(passed))
        passed.append((driver.name, why))
    raise AssertionError("a ladder ends with a driver that can")


def check_impl(impl: str | None) -> None:
    """Raise ConfigError unless `impl` is None or names a driver."""
    if impl is not None and impl not in tuple(DRIVERS):
        raise unknown("impl", "driver", impl, DRIVERS)


def current_platform() -> str:
    """`cpu`, `tpu` or `gpu`: of the default device."""
    device: Any = jax.config.values["jax_default_device"]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
