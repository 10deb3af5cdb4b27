"""Drivers of kernels, and the choice of one: the first of a platform's ladder that can."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from positionbias.errors import ConfigError, unknown

PLATFORMS = ("cpu", "gpu", "tpu")
Ladder = Callable[[Any, str], Iterable[tuple["Driver", str | None]]]


@dataclasses.dataclass(frozen=True)
class Driver:
    """A way to compute what a kernel is asked for."""

    name: str
    run: Callable[[Any], Any] = dataclasses.field(repr=False)
    # of a problem on a platform; None if it can
    unsupported_reason: Callable[[Any, str], str | None] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen, on which platform, and why the drivers before it were not."""

    driver: Driver
    problem: Any = dataclasses.field(repr=False)
    platform: str
    passed_over: tuple[tuple[str, str], ...]


def by_pallas(name: str, module: Any) -> tuple[Driver, Driver]:
    """The driver that a module's `run` and `unsupported_reason` are, and, `NAME_interpret`, the same in interpret mode.

    Why that cannot do a problem is its `interpret_unsupported_reason`.
    """
    interpreted = functools.partial(module.run, interpret=True)
    return (
        Driver(name, module.run, module.unsupported_reason),
        Driver(f"{name}_interpret", interpreted, module.interpret_unsupported_reason),
    )


def always(problem: Any, platform: str) -> None:
    """For `unsupported_reason` of a driver that can do everything."""
    return None


_NOTED: contextvars.ContextVar[tuple[str, list[tuple[str, str]]] | None] = contextvars.ContextVar("noted", default=None)


@contextlib.contextmanager
def noting(platform: str) -> Iterator[list[tuple[str, str]]]:
    """Kernels and the drivers that are chosen meanwhile for the platform; what is traced is `xla_chunked`, of all."""
    found: list[tuple[str, str]] = []
    token = _NOTED.set((platform, found))
    try:
        yield found
    finally:
        _NOTED.reset(token)


def choose(
    problem: Any, impl: str | None, platform: str | None, drivers: Mapping[str, Driver], ladder: Ladder
) -> Choice:
    """The driver `impl`, or the first of the ladder; ConfigError with the reason if the one named cannot.

    `ladder(problem, platform)` gives drivers in the order they are tried, and why each cannot or should not.
    """
    if platform is not None and platform not in PLATFORMS:
        raise unknown("platform", "platform", platform, PLATFORMS)
    noted = _NOTED.get()
    if noted is not None and platform is None:
        chosen = _chosen(problem, impl, noted[0], drivers, ladder)
        noted[1].append((type(problem).__module__.split(".")[-2], chosen.driver.name))
        return dataclasses.replace(chosen, driver=drivers["xla_chunked"])
    return _chosen(problem, impl, platform, drivers, ladder)


def _chosen(
    problem: Any, impl: str | None, platform: str | None, drivers: Mapping[str, Driver], ladder: Ladder
) -> Choice:
    platform = platform or current_platform()
    if impl is not None:
        check_impl(impl, drivers)
        why = drivers[impl].unsupported_reason(problem, platform)
        if why is not None:
            raise ConfigError(f"impl = {impl!r} cannot do this: {why}; allowed: another driver, or None to choose one.")
        return Choice(drivers[impl], problem, platform, ())
    passed: list[tuple[str, str]] = []
    for driver, why in ladder(problem, platform):
        if why is None:
            return Choice(driver, problem, platform, tuple(passed))
        passed.append((driver.name, why))
    raise AssertionError("a ladder ends with a driver that can")


def check_impl(impl: str | None, drivers: Mapping[str, Driver]) -> None:
    """Raise ConfigError unless `impl` is None or names a driver."""
    if impl is not None and impl not in tuple(drivers):
        raise unknown("impl", "driver", impl, drivers)


def current_platform() -> str:
    """`cpu`, `tpu` or `gpu`: of the default device."""
    device: Any = jax.config.values["jax_default_device"]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def capability(platform: str) -> float | None:
    """The compute capability of this machine's GPU, 0 of one that is none of NVIDIA's; None where it is not known."""
    if platform != "gpu" or jax.default_backend() != "gpu":
        return None
    device = jax.devices()[0]
    if "rocm" in getattr(device.client, "platform_version", "").lower():
        return 0.0
    found = getattr(device, "compute_capability", None)
    return None if found is None else float(found)
