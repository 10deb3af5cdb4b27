"""What the entries share: one run from a resolved config to its printed table and report."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Callable
from typing import TextIO

from positionbias import runtime
from positionbias.config import cli, resolve, schema
from positionbias.files import FileError
from positionbias.spec import ConfigError

IN_USE = 4
MOST_PROCESSES = 2**16


def default_workdir(config: schema.Config) -> pathlib.Path:
    """`runs/NAME/HASH`."""
    return pathlib.Path("runs", config.name, resolve.config_hash(config))


def processes(given: str | None) -> runtime.Processes | None:
    """What `--processes` says: None, 'auto', or HOST:PORT,COUNT,INDEX."""
    if given is None or given == "auto":
        return None if given is None else runtime.Processes()
    address, *numbers = given.split(",")
    _, colon, port = address.rpartition(":")
    if len(numbers) == 2 and colon and all(x.isdecimal() and len(x) < 9 for x in (port, *numbers)):
        count, index = map(int, numbers)
        if index < count <= MOST_PROCESSES and 0 < int(port) < 65536:
            return runtime.Processes(address, count, index)
    raise ConfigError(
        f"--processes: {given!r} is not allowed; allowed: 'auto', or HOST:PORT,COUNT,INDEX, of which INDEX is from 0 to"
        " below COUNT."
    )


def set_up(config: schema.Config, processes: runtime.Processes | None = None) -> None:
    """Configure JAX for the devices this config's replicas are shared out over, and join the other processes."""
    with runtime.no_garbage():
        from positionbias.training import auto

    count = 1 if processes is None else processes.count or 1
    devices = auto.virtual_devices(config, runtime.most_devices() * count)
    runtime.configure(-(-devices // count), processes)


def run(config: schema.Config, workdir: pathlib.Path, stop_after: int | None = None) -> int:
    """Train, print the table and write the report; returns the exit code."""
    with runtime.no_garbage():
        from positionbias import hosts
        from positionbias.training.loop import train
        from positionbias.training.run_folder import FolderInUse

    def told(line: str) -> None:
        if hosts.first():
            say(line)

    try:
        outcome = train(config, workdir, sys.orig_argv, told, stop_after)
    except FolderInUse as error:
        print(f"error: {error}", file=sys.stderr)
        return IN_USE
    except (ConfigError, FileError):  # of which all processes are told
        raise
    except BaseException as error:
        if hosts.several():
            cli.leave(error)
        raise
    if not hosts.first():
        return outcome.code
    if outcome.message:
        say(outcome.message, sys.stderr if outcome.status == "failed" else sys.stdout)
    conclude(workdir)
    if outcome.status == "stopped":
        say(f"stopped at step {outcome.step} of {config.train.steps}; the same command goes on from there")
    return outcome.code


def alone(workdir: pathlib.Path, do: Callable[[], None]) -> int:
    """Do something to a run folder that no training may prune or cut meanwhile; returns the exit code."""
    from positionbias.training.run_folder import FolderInUse, locked

    try:
        with locked(workdir):
            do()
    except FolderInUse as error:
        print(f"error: {error}", file=sys.stderr)
        return IN_USE
    return 0


def say(line: str, stream: TextIO | None = None) -> None:
    """Print one line; a reader that is gone, or a full disk behind it, must not cost a run."""
    with contextlib.suppress(OSError):
        print(line, file=stream or sys.stdout, flush=True)


def conclude(workdir: pathlib.Path) -> None:
    """Print the table of a run that has been evaluated since training began, and where its report lies."""
    from positionbias.evaluation.stored import read_summary
    from positionbias.evaluation.table import table
    from positionbias.reporting.report import write_report

    summary = read_summary(workdir / "summary.json")
    # Of a run stopped early: its table would tell nothing of training.
    initial = summary.get("steps") == 0 and summary["of"] != 0
    if summary and not initial:
        say(table(summary))
    try:
        only = " (only the evaluation at initialisation is there yet)" if initial else ""
        say(f"report: {write_report(workdir)}{only}")
    except ConfigError as error:  # a report that cannot be drawn must not hide a run that was trained
        say(f"no report: {error}", sys.stderr)
