"""A config's compiled training step, as `positionbias.train` makes it, for benchmarks to call."""

from __future__ import annotations

import jax

from positionbias import launch
from positionbias.config import build, cli, resolve
from positionbias.training import auto
from positionbias.training.program import Compiled, Program


def compiled(config_file: str, *overrides: tuple[str, str]) -> Compiled:
    """Build and compile a config file; sets JAX up, so nothing may have touched a device before."""
    config = resolve.resolve(cli.load_config(config_file, list(overrides)))
    launch.set_up(config)
    experiment = build.build(config)
    return Program(experiment, auto.resolve(experiment, jax.default_backend(), len(jax.devices()))).compile()
