"""What `auto` means here: resolved once, printed, kept in the manifest, overridable in the config.

How many replicas are at once is no field, and known only when a step is compiled: `training/fitting.py`.
"""

from __future__ import annotations

import dataclasses
import math
import os

import jax

from positionbias import hosts, spec
from positionbias.config import schema
from positionbias.config.build import Experiment
from positionbias.objectives.base import Objective
from positionbias.replicas import AXES, Layout
from positionbias.spec import ConfigError

CPU_TOKENS = 256  # tokens of a micro-batch on a CPU: what fits in cache, measured


@dataclasses.dataclass(frozen=True)
class Auto:
    """The choices a run was made with."""

    layout: Layout
    microbatch: int
    steps_per_dispatch: int
    drivers: tuple[str, ...] = ()  # of the attentions
    recurrences: tuple[str, ...] = ()  # drivers of operators that carry a state
    together: int | None = None  # replicas side by side, where some are those of other runs

    def describe(self) -> dict[str, int | str]:
        """What is printed and kept in the manifest."""
        found: dict[str, int | str] = {
            "replica_layout": self.layout.form,
            "mesh": " x ".join(f"{getattr(self.layout, axis)} {axis}" for axis in AXES),
            "microbatch": self.microbatch,
            "steps_per_dispatch": self.steps_per_dispatch,
        }
        found |= {"attention": " and ".join(self.drivers)} if self.drivers else {}
        found |= {"recurrence": " and ".join(self.recurrences)} if self.recurrences else {}
        found |= {"replicas_at_once": self.layout.at_once} if self.layout.at_once else {}
        return found | ({"replicas_together": self.together} if self.together else {})


def layout(config: schema.Config, platform: str, available: int) -> Layout:
    """The mesh as asked; what is `auto` of it is filled with replicas first, with parts of their batches next.

    Raises ConfigError for more devices than are `available`.
    """
    train, asked = config.train, config.train.mesh
    form = train.replica_layout
    if form == "auto":
        form = "loop" if platform == "cpu" else "vmap"
    least = asked.fsdp if asked.data == "auto" else asked.data * asked.fsdp
    replica, data = asked.replica, asked.data
    if replica == "auto":
        replica = _most(available // least, train.replicas)
    if data == "auto":
        together = 1 if train.microbatch == "auto" else train.microbatch
        data = _most(available // (replica * asked.fsdp), train.batch_size // asked.fsdp // together)
    found = Layout(form, replica, data, asked.fsdp)
    if found.devices > available:
        raise ConfigError(
            f"train.mesh asks for {replica} x {data} x {asked.fsdp} = {found.devices} devices, more than this machine"
            f" has; allowed: 1 to {available}."
        )
    return found


def _check_processes(chosen: Layout) -> None:
    idle = {d.process_index for d in jax.devices()} - {d.process_index for d in chosen.mesh().devices.flat}
    if idle:
        raise ConfigError(
            f"train.mesh uses {chosen.devices} of {len(jax.devices())} devices, none of process {min(idle)}; allowed: a"
            " mesh over all processes, of more replicas or parts of a batch, or fewer --processes."
        )


def _most(available: int, shared: int) -> int:
    """The most devices, at least one, that share out so many evenly."""
    return max(d for d in range(1, max(1, min(available, shared)) + 1) if shared % d == 0)


def virtual_devices(config: schema.Config, most: int) -> int:
    """How many devices, `most` at most, a CPU is split into, before it is known whether there is another device.

    Beyond that, `resolve` refuses what was asked.
    """
    try:
        return layout(config, "cpu", most).devices
    except ConfigError:
        return most


def dispatch(config: schema.Config) -> int:
    """Steps in one compiled call: as asked, else the greatest number that divides every cadence and the steps."""
    if config.train.steps_per_dispatch != "auto":
        return config.train.steps_per_dispatch
    cadences = (config.train.log_every, config.evaluation.every, config.checkpoint.every, config.train.steps)
    return math.gcd(*(c for c in cadences if c is not None))


def resolve(experiment: Experiment, platform: str, available: int) -> Auto:
    """Choose for `platform` ("cpu", "gpu", "tpu") with `available` devices.

    Raises ConfigError for more devices than that, and for more parameters than this machine's memory holds: they are
    the least that a run needs, and on their way to a checkpoint they are in that memory whatever the platform.
    """
    config, task = experiment.config, experiment.task
    _check_memory(experiment)
    chosen, length = layout(config, platform, available), max(task.length(c) for c in task.conditions())
    if chosen.fsdp > 1 and type(experiment.objective).tuned is not Objective.tuned:
        raise ConfigError(
            f"train.mesh.fsdp = {chosen.fsdp} leaves no device with whole matrices, which objective"
            f" {spec.canonical(experiment.objective)} fits; allowed: 1."
        )
    if hosts.several():
        _check_processes(chosen)
    microbatch = _microbatch(config.train, platform, length, chosen.shards)
    drivers, carried = experiment.drivers(microbatch, platform), experiment.recurrences(microbatch, platform)
    return Auto(chosen, microbatch, dispatch(config), tuple(drivers), tuple(carried))


def memory() -> int:
    """Bytes of physical memory; a container may be given less."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def room(layout: Layout) -> int | None:
    """Bytes that one program may take of each of the layout's devices; None where their platform does not tell."""
    if jax.default_backend() == "cpu":
        return memory() // layout.devices  # which share it
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def _check_memory(experiment: Experiment) -> None:
    replicas, has = experiment.config.train.replicas, memory()
    needed = replicas * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(experiment.abstract))
    if needed > has:
        raise ConfigError(
            f"model: its parameters take {needed / 2**30:.1f} GiB in {replicas} replicas, more than the"
            f" {has / 2**30:.1f} GiB of memory here; allowed: a smaller model or fewer train.replicas."
        )


def _microbatch(train: schema.Train, platform: str, length: int, shards: int) -> int:
    if train.microbatch != "auto":
        return train.microbatch
    own = train.batch_size // shards
    return _most(max(1, CPU_TOKENS // length) if platform == "cpu" else own, own)
