"""Train one config: `python -m positionbias.train --config configs/quickstart.py [--workdir DIR]`."""

from __future__ import annotations

from positionbias import launch
from positionbias.config import cli, resolve
from positionbias.spec import ConfigError


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser("python -m positionbias.train", "Train a config, evaluate it by position and write a report.")
    made.add_argument("--config", required=True, metavar="FILE[:arg=value,...]", help="the config file")
    made.add_argument("--workdir", help="run folder; default: runs/NAME/HASH. The same command resumes a run")
    made.add_argument(
        "--stop_after", type=int, metavar="STEP", help="stop after the first dispatch that reaches this step"
    )
    made.add_argument(
        "--processes",
        metavar="auto|HOST:PORT,COUNT,INDEX",
        help="train in several processes, one a machine: the same command on each, but for INDEX",
    )
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, overrides = cli.parse_command_line(parser(), argv)
    workdir = None if given.workdir is None else cli.folder(given.workdir)
    config = resolve.resolve(cli.load_config(given.config, overrides))
    if given.stop_after is not None and given.stop_after < 1:
        raise ConfigError(f"--stop_after: {given.stop_after} is not allowed; allowed: a whole number from 1.")
    launch.set_up(config, launch.processes(given.processes))
    return launch.run(config, workdir or launch.default_workdir(config), given.stop_after)


if __name__ == "__main__":
    cli.run_entry(main)
