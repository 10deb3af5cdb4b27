"""Run the cells of a config's sweep: `python -m positionbias.sweep --config FILE [--sweep NAME[,NAME2]]`."""

from __future__ import annotations

import hashlib
import pathlib

from positionbias import launch, sweeping
from positionbias.config import cli, files, resolve, sweeps

EXECUTORS = {"local": sweeping.LocalExecutor}


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser("python -m positionbias.sweep", "Run every cell of a sweep; finished cells are skipped.")
    made.add_argument("--config", required=True, metavar="FILE[:arg=value,...]", help="the config file")
    made.add_argument("--sweep", metavar="NAME[,NAME2]", help="which sweeps of the file; several multiply")
    made.add_argument("--workdir", help="sweep folder; default: sweeps/CONFIG NAME/HASH. The same command resumes it")
    made.add_argument("--executor", choices=sorted(EXECUTORS), default="local", help="where cells run")
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, overrides = cli.parse_command_line(parser(), argv)
    workdir = None if given.workdir is None else launch.folder(given.workdir)
    cells = sweeps.cells(given.config, given.sweep, overrides)
    digest = hashlib.sha256(" ".join(resolve.config_hash(c.config) for c in cells).encode()).hexdigest()[:12]
    name = pathlib.Path(files.read(given.config).path).stem
    return sweeping.run(cells, workdir or pathlib.Path("sweeps", name, digest), EXECUTORS[given.executor](), name)


if __name__ == "__main__":
    cli.run_entry(main)
