"""Run the cells of a config's sweep: `python -m positionbias.sweep --config FILE [--sweep NAME[,NAME2]]`."""

from __future__ import annotations

import hashlib
import pathlib

from positionbias import launch
from positionbias.config import cli, files, resolve, sweeps
from positionbias.sweeping import executors, plan, run, table

EXECUTORS = {"local": executors.LocalExecutor}


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
    made.add_argument("--workdir", help="sweep folder; default: sweeps/CONFIG NAME/HASH. The same command resumes it")
    made.add_argument("--status", action="store_true", help="print where the cells stand, and run nothing")
    made.add_argument("--executor", choices=sorted(EXECUTORS), default="local", help="where cells run")
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, overrides = cli.parse_command_line(parser(), argv)
    workdir = None if given.workdir is None else launch.folder(given.workdir)
    cells = sweeps.cells(given.config, given.sweep, overrides)
    part = None if given.cells is None else sweeps.part(cells, given.cells)
    digest = hashlib.sha256(" ".join(resolve.config_hash(c.config) for c in cells).encode()).hexdigest()[:12]
    name = pathlib.Path(files.read(given.config).path).stem
    workdir = workdir or pathlib.Path("sweeps", name, digest)
    if given.status:
        return table.show(part or cells, workdir, plan.planned(cells, name))
    return run.run(cells, workdir, EXECUTORS[given.executor](), name, part)


if __name__ == "__main__":
    cli.run_entry(main)
