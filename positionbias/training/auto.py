"""What `auto` means here: resolved once, printed, kept in the manifest, overridable in the config."""

from __future__ import annotations

import dataclasses
import math
import os

import jax

from positionbias.config import schema
from positionbias.config.build import Experiment
from positionbias.replicas import Layout
from positionbias.spec import ConfigError

CPU_TOKENS = 256  # tokens of a micro-batch on a CPU: what fits in cache, measured


@dataclasses.dataclass(frozen=True)
class Auto:
    """The choices a run was made with."""

    layout: Layout
    microbatch: int
    steps_per_dispatch: int
    drivers: tuple[str, ...] = ()  # of the attentions

    def describe(self) -> dict[str, int | str]:
        """What is printed and kept in the manifest."""
        found: dict[str, int | str] = {
            "replica_layout": self.layout.form,
            "devices": self.layout.devices,
            "microbatch": self.microbatch,
            "steps_per_dispatch": self.steps_per_dispatch,
        }
        return found | ({"attention": " and ".join(self.drivers)} if self.drivers else {})


def devices(config: schema.Config, available: int) -> int:
    """Devices the replicas are shared out over: as asked, else the most that divide them evenly."""
    asked, replicas = config.train.devices, config.train.replicas
    if asked == "auto":
        return max(d for d in range(1, min(available, replicas) + 1) if replicas % d == 0)
    if asked > available:
        raise ConfigError(f"train.devices = {asked} is more than this machine has; allowed: 1 to {available}.")
    return asked


def virtual_devices(config: schema.Config, cores: int) -> int:
    """How many devices a CPU of `cores` cores is split into, before it is known whether there is another device.

    One a core at most: beyond that, `resolve` refuses what was asked.
    """
    return devices(config, cores) if config.train.devices == "auto" else min(config.train.devices, cores)


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
    train, length = config.train, max(task.length(c) for c in task.conditions())
    form = train.replica_layout
    if form == "auto":
        form = "loop" if platform == "cpu" else "vmap"
    layout, microbatch = Layout(form, devices(config, available)), _microbatch(train, platform, length)
    return Auto(layout, microbatch, dispatch(config), tuple(experiment.drivers(microbatch, platform)))


def memory() -> int:
    """Bytes of physical memory; a container may be given less."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_memory(experiment: Experiment) -> None:
    replicas, has = experiment.config.train.replicas, memory()
    needed = replicas * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(experiment.abstract))
    if needed > has:
        raise ConfigError(
            f"model: its parameters take {needed / 2**30:.1f} GiB in {replicas} replicas, more than the"
            f" {has / 2**30:.1f} GiB of memory here; allowed: a smaller model or fewer train.replicas."
        )


def _microbatch(train: schema.Train, platform: str, length: int) -> int:
    if train.microbatch != "auto":
        return train.microbatch
    most = max(1, CPU_TOKENS // length) if platform == "cpu" else train.batch_size
    return max(m for m in range(1, min(most, train.batch_size) + 1) if train.batch_size % m == 0)
