"""What the entries share: one run from a resolved config to its printed table and report."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Callable
from typing import TextIO

from positionbias import runtime
from positionbias.config import resolve, schema
from positionbias.spec import ConfigError

IN_USE = 4


def folder(given: str, flag: str = "--workdir") -> pathlib.Path:
    """The path given as `flag`."""
    if not given:  # which pathlib takes for the folder one is in
        raise ConfigError(f"{flag}: '' is not allowed; allowed: the path of a folder.")
    return pathlib.Path(given)


def default_workdir(config: schema.Config) -> pathlib.Path:
    """`runs/NAME/HASH`."""
    return pathlib.Path("runs", config.name, resolve.config_hash(config))


def set_up(config: schema.Config) -> None:
    """Configure JAX for the devices this config's replicas are shared out over."""
    with runtime.no_garbage():
        from positionbias.training import auto

    runtime.configure(auto.virtual_devices(config, runtime.cores()))


def run(config: schema.Config, workdir: pathlib.Path, stop_after: int | None = None) -> int:
    """Train, print the table and write the report; returns the exit code."""
    with runtime.no_garbage():
        from positionbias.training.loop import train
        from positionbias.training.run_folder import FolderInUse

    try:
        outcome = train(config, workdir, sys.orig_argv, say, stop_after)
    except FolderInUse as error:
        print(f"error: {error}", file=sys.stderr)
        return IN_USE
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
