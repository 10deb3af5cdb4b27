"""One cell of a sweep, run in this process, whichever executor started it."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from positionbias import launch
from positionbias.config.sweeps import Cell
from positionbias.files import FileError, read_json
from positionbias.launch import say
from positionbias.spec import ConfigError
from positionbias.sweeping import ledger

if TYPE_CHECKING:
    from positionbias.training.reuse import Programs

HELD = "held"  # the status of a cell that another process is running, which is nothing that ended
ELSEWHERE = "by another process"  # the message of one that was finished before it could begin here


def run_cell(
    cell: Cell,
    workdir: pathlib.Path,
    command: list[str],
    begin: Callable[[], None] | None = None,
    programs: Programs | None = None,
) -> dict[str, Any]:
    """Train a cell in its folder, and note in the ledger that it begins and how it ends; the line of how it ended.

    `command` is that of the sweep, and `begin` sets the process up, before anything touches a device; `programs` hands
    what is compiled from cell to cell. A cell that is finished is not run again, and one that another process holds is
    left alone. Whatever else breaks a cell is told in its line; WriteError if the ledger cannot be written.
    """
    from positionbias.training.run_folder import FolderInUse, locked

    folder, started = workdir / "cells" / cell.name, time.monotonic()

    def ended(status: str, code: int, message: str) -> dict[str, Any]:
        return note_end(cell, workdir, started, status, code, message)

    try:
        with locked(folder):
            pass
    except FolderInUse as error:
        return ended(HELD, launch.IN_USE, str(error))
    except ConfigError as error:
        return ended("failed", 2, str(error))
    if finished(cell, workdir):
        return ended("finished", 0, ELSEWHERE)
    note_begin(cell, workdir)
    try:
        return ended(*_outcome(cell, folder, command, begin, programs))
    except (KeyboardInterrupt, SystemExit) as stop:
        ended(*interrupted(stop))
        raise


def note_begin(cell: Cell, workdir: pathlib.Path) -> None:
    """Note in the ledger that a cell begins in this process."""
    from positionbias.training.run_folder import this_process

    ledger.note(workdir, {"cell": cell.name, "status": "running", "where": this_process()})


def note_end(cell: Cell, workdir: pathlib.Path, started: float, status: str, code: int, message: str) -> dict[str, Any]:
    """Note how a cell ended, unless it is held; the line. It began at `started` by the monotonic clock."""
    from positionbias.training.run_folder import this_process

    seconds = round(time.monotonic() - started, 1)
    line = {"cell": cell.name, "status": status, "code": code, "message": message, "seconds": seconds}
    line["where"] = this_process()
    if status != HELD:
        ledger.note(workdir, line)
    return line


def interrupted(stop: KeyboardInterrupt | SystemExit) -> tuple[str, int, str]:
    """Status, code and message of a cell that a signal ended as an exception."""
    return "stopped", 130 if isinstance(stop, KeyboardInterrupt) else 143, "interrupted"


def _outcome(
    cell: Cell,
    folder: pathlib.Path,
    command: list[str],
    begin: Callable[[], None] | None,
    programs: Programs | None,
) -> tuple[str, int, str]:
    from positionbias.reporting.report import write_report
    from positionbias.training.loop import train
    from positionbias.training.run_folder import FolderInUse

    try:
        if begin is not None:
            begin()
        outcome = train(cell.config, folder, command, say, programs=programs)
    except FolderInUse as error:
        return HELD, launch.IN_USE, str(error)
    except ConfigError as error:
        return "failed", 2, str(error)
    except (FileError, MemoryError) as error:
        return "failed", 1, str(error)
    except Exception as error:  # whatever breaks one cell must not lose the others
        say(traceback.format_exc().rstrip(), sys.stderr)
        return "failed", 1, f"{type(error).__name__}: {error}".splitlines()[0]
    with contextlib.suppress(ConfigError):  # the sweep's own report says what is missing
        write_report(folder)
    return outcome.status, outcome.code, outcome.message


def finished(cell: Cell, workdir: pathlib.Path) -> bool:
    """Whether a cell's run folder says that it is finished, and is not that of another config, copied there."""
    try:
        manifest = dict(read_json(workdir / "cells" / cell.name / "manifest.json") or {})
        return (manifest.get("status"), manifest.get("hash")) == ("finished", cell.hash)
    except (OSError, TypeError, ValueError):
        return False
