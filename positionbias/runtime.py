"""The only reader and writer of the environment: compile cache, devices, precision.

Entry modules call `configure` once, before anything touches a device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import os
import pathlib
import random
import re
import tempfile
from collections.abc import Iterator

from positionbias.errors import ConfigError

CACHE_VARIABLE = "POSITIONBIAS_CACHE"  # folder of the compile cache; "off" turns it off
FUSION = "--xla_cpu_experimental_ynn_fusion_type"
ALONE = f"{FUSION}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def sound_products() -> None:
    """Have XLA for CPUs leave products to no library that fuses them, before it starts; what XLA_FLAGS say of it stays.

    In jaxlib 0.10.2 to 0.12 a product whose operand is broadcast inside such a fusion reads memory that was never
    written: `q @ jnp.zeros(...) + jnp.sum(q * k, -1, keepdims=True)` of some megabytes, compiled, is garbage, another
    in each process. Products alone are right there, and faster: `step_options` asks for them. Elsewhere they are not
    asked for, since gradients of 0 came out as 3.5e-6 of the largest entry, where they are 9e-7 so.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FUSION not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FUSION}=".strip()


def step_options(platform: str) -> dict[str, str | bool]:
    """How XLA is to compile a train step: on a CPU with each product, alone, by the library that has the faster ones.

    They are as near those of float64 as others; where terms cancel the rest is another, and up to four times as large
    (`sound_products`), which is far below what a batch makes gradients differ by. Nothing is asked for where XLA_FLAGS
    tell something of that library; an empty value is what is set where they do not.
    """
    ours = f"{FUSION}=" in os.environ.get("XLA_FLAGS", "").split()
    name, _, value = ALONE.removeprefix("--").partition("=")
    return {name: value} if platform == "cpu" and ours else {}


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Start-up, inside: what imports and tracing make stays, and looking through it for garbage is a tenth of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def cores() -> int:
    """Processor cores this process may use."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, _most or there)


def most_devices() -> int:
    """How many devices a CPU may be split into: one a core, or as many as XLA_FLAGS asks for."""
    asked = re.findall(r"--xla_force_host_platform_device_count=([0-9]{1,4})\b", os.environ.get("XLA_FLAGS", ""))
    return max(int(asked[-1]), 1) if asked else cores()


_most: int | None = None  # cores that `keep_to` leaves this process, where the system does not see to it
_claims: list[int] = []  # descriptors of the locks on cores of `keep_to`, held as long as this process lives


def keep_to(count: int) -> None:
    """Leave this process `count` cores, of which no other process that keeps to some has any, as far as there are such.

    Before JAX starts: threads have the cores of the thread that starts them. Where a system cannot tie a process to
    cores, XLA is told how many threads to use.
    """
    global _most
    if not hasattr(os, "sched_setaffinity"):
        _most = count
        os.environ["PJRT_NPROC"] = str(count)
        return
    allowed = sorted(os.sched_getaffinity(0))
    if count >= len(allowed):
        return
    chosen: list[int] = []
    with contextlib.suppress(OSError):  # a folder that is another's, or a full disk: then any cores
        home = pathlib.Path(tempfile.gettempdir(), f"positionbias-cores-{os.getuid()}")
        home.mkdir(exist_ok=True)
        for core in allowed:
            claim = os.open(home / f"{core}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it, however this process ends
            except BlockingIOError:
                os.close(claim)
                continue
            _claims.append(claim)
            chosen.append(core)
            if len(chosen) == count:
                break
    others = [core for core in allowed if core not in chosen]
    os.sched_setaffinity(0, [*chosen, *random.sample(others, count - len(chosen))])


def keep_ray_here() -> None:
    """Have a Ray that is started on this machine listen on the loopback address alone, and only to who has its token.

    Before Ray is imported. It is the default of Ray itself on macOS and Windows; on Linux it would listen on every
    address.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def cache_folder() -> pathlib.Path | None:
    """Where compiled programs are kept: $POSITIONBIAS_CACHE, else the user's cache folder; None if off."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen == "off":
        return None
    if chosen:
        return pathlib.Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "positionbias" / "compiled"


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of one run; where nothing is given, JAX finds it out: on TPU pods, under SLURM and Open MPI."""

    coordinator: str | None = None  # HOST:PORT, where the first process can be reached
    count: int | None = None
    index: int | None = None


def configure(cpu_devices: int = 1, processes: Processes | None = None, platform: str | None = None) -> None:
    """Set JAX up: `cpu_devices` virtual devices where the platform is a CPU, full float32 products, a compile cache.

    A `platform` keeps JAX to it: "cpu" leaves accelerators to other processes.

    Matrix products are pinned to full float32 precision, so that a GPU or TPU computes what the config says. Does
    nothing for the number of devices if a backend exists already. With `processes` it waits for all of them, and raises
    ConfigError where they cannot be found.
    """
    # XLA's note that a cached program was built for the same processor under another name helps nobody.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    if platform is not None:
        jax.config.update("jax_platforms", platform)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_threefry_partitionable", True)
    with contextlib.suppress(RuntimeError):  # a device was touched already: their number stays
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if processes is not None:
        _join(processes)
    folder = cache_folder()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _join(processes: Processes) -> None:
    import jax

    # On CPUs programs that were started one after the other run side by side, and what two of them send gets mixed up.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        bind = _listening(processes.coordinator)
        jax.distributed.initialize(
            processes.coordinator, processes.count, processes.index, coordinator_bind_address=bind
        )
    except (ValueError, RuntimeError) as error:
        told = str(error).strip().partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"--processes: {told}; allowed: 'auto' where JAX finds the others, else HOST:PORT,COUNT,INDEX."
        ) from None


def _listening(coordinator: str | None) -> str | None:
    """Where the first process is to listen: at the address given if it is this machine's; None leaves it to JAX.

    Then it listens at all of this machine's addresses: others may know it by one that it does not know itself, and what
    a name stands for here, 127.0.1.1 say, need not be what it stands for elsewhere.
    """
    import ipaddress
    import socket

    host, _, _ = (coordinator or "").rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family) as tried:
            tried.bind((host, 0))
    except (OSError, ValueError):
        return None
    return coordinator
