"""Run the cells of a config's sweep: `python -m positionbias.sweep --config FILE [--sweep NAME[,NAME2]]`."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
from collections.abc import Sequence

from positionbias.config import cli, files, sharing, sweeps
from positionbias.spec import ConfigError
from positionbias.sweeping import by_ray, executors, plan, run, table


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser("python -m positionbias.sweep", "Run every cell of a sweep; finished cells are skipped.")
    made.add_argument("--config", required=True, metavar="FILE[:arg=value,...]", help="the config file")
    made.add_argument("--sweep", metavar="NAME[,NAME2]", help="which sweeps of the file; several multiply")
    made.add_argument(
        "--cells",
        metavar="NAME[,NAME2]|I/N",
        help="only these cells, or every N-th from the I-th on; several such commands may share a sweep folder",
    )
    made.add_argument("--workdir", help="sweep folder; default: sweeps/NAME/HASH. The same command resumes it")
    made.add_argument("--status", action="store_true", help="print where the cells stand, and run nothing")
    made.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="where cells run: one after another in this process, or in workers of Ray",
    )
    made.add_argument(
        "--ray_address",
        metavar="HOST:PORT|auto",
        help="the cluster of Ray, 'auto' for the one that Ray finds; default: workers on this machine",
    )
    made.add_argument(
        "--cell_resources",
        metavar="NAME=NUMBER[,NAME2=NUMBER2]",
        help="what each cell has of Ray's resources, as CPU=4 or CPU=4,GPU=1; default: a GPU, a TPU chip or a core, or"
        " as many as train.mesh asks for",
    )
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, overrides = cli.parse_command_line(parser(), argv)
    workdir = None if given.workdir is None else cli.folder(given.workdir)
    cells = sweeps.cells(given.config, given.sweep, overrides, given.cells)
    part = None if given.cells is None else sharing.part(cells, given.cells)
    executor = _executor(given)
    name = cells[0].config.name
    workdir = workdir or default_workdir(cells, pathlib.Path(files.read(given.config).path))
    if given.status:
        return table.show(part or cells, workdir, plan.planned(cells, name))
    return run.run(cells, workdir, executor, name, part)


def default_workdir(cells: Sequence[sweeps.Cell], file: pathlib.Path) -> pathlib.Path:
    """`sweeps/NAME/HASH`, of the first cell's name; if begun there, what was named after the config file before."""
    digest = hashlib.sha256(" ".join(cell.hash for cell in cells).encode()).hexdigest()[:12]
    home, former = (pathlib.Path("sweeps", name, digest) for name in (cells[0].config.name, file.stem))
    return former if (former / plan.NAME).is_file() and not home.exists() else home


def _executor(given: argparse.Namespace) -> executors.Executor:
    if given.executor == "ray":
        if given.ray_address == "":
            raise ConfigError("--ray_address: '' is not allowed; allowed: HOST:PORT, 'auto', or no such flag.")
        return by_ray.RayExecutor(given.ray_address, by_ray.asked(given.cell_resources))
    for flag in ("ray_address", "cell_resources"):
        if getattr(given, flag) is not None:
            raise ConfigError(f"--{flag}: is for workers of Ray; allowed: together with --executor ray.")
    return executors.LocalExecutor()


if __name__ == "__main__":
    cli.run_entry(main)
