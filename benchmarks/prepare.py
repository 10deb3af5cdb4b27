"""A config's compiled training step, as `positionbias.train` makes it, for benchmarks to call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from positionbias import launch
from positionbias.config import build, cli, resolve
from positionbias.training import auto
from positionbias.training.program import Compiled, Program


def compiled(config_file: str, *overrides: tuple[str, str]) -> Compiled:
    """Build and compile a config file; sets JAX up, so nothing may have touched a device before."""
    return program(cli.load_config(config_file, list(overrides))).compile()


def program(raw: Mapping[str, Any]) -> Program:
    """A config's program, not compiled yet; the first in a process says how many devices a CPU is split into."""
    config = resolve.resolve(raw)
    launch.set_up(config)
    experiment = build.build(config)
    return Program(experiment, auto.resolve(experiment, jax.default_backend(), len(jax.devices())))
