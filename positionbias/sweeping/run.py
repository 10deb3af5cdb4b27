"""Running a sweep, or a part of it: the plan, the cells that are not finished, the report.

A sweep folder holds `plan.json` (every cell, written first), `ledger.jsonl` (a line each time a cell begins or ends),
`cells/NAME/` (run folders) and `report.html`. A finished cell is never run again; a failed one does not stop the rest.
Parts of a sweep may run in several processes at once: each file above is written whole, by one of them at a time.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from positionbias import launch
from positionbias.config import sharing
from positionbias.config.sweeps import Cell
from positionbias.files import FileError
from positionbias.launch import say
from positionbias.spec import ConfigError
from positionbias.sweeping import plan, table
from positionbias.sweeping.cell import ELSEWHERE, HELD, finished
from positionbias.sweeping.executors import Executor
from positionbias.sweeping.standing import Watch, measured


def run(
    cells: list[Cell], workdir: pathlib.Path, executor: Executor, name: str, part: Sequence[Cell] | None = None
) -> int:
    """Run what is not finished of all `cells`, or of a `part`, write the report, list what failed; the exit code.

    Every cell that is to run here is built before anything is written: ConfigError if one of them cannot be. Of two
    processes that run a whole sweep in one folder the second is refused, and so are a whole one and a part; parts are
    not, and leave each other's cells alone. FileError if the plan is deleted meanwhile.
    """
    from positionbias.training.run_folder import FolderInUse, locked

    own, whole = list(cells if part is None else part), part is None
    planned = plan.planned(cells, name)
    plan.check(workdir, planned)
    executor.prepare(cells, own)
    try:
        with locked(workdir, part=not whole):
            plan.keep(workdir, planned)
            return _run(own, workdir, executor)
    except FolderInUse as error:
        say(f"error: {error}", sys.stderr)
        return launch.IN_USE


def _run(cells: list[Cell], workdir: pathlib.Path, executor: Executor) -> int:
    left = [c for c in cells if not finished(c, workdir)]
    if len(left) < len(cells):
        say(f"{len(cells) - len(left)} of {len(cells)} cells are finished already")
    ended = []
    if left:
        for text in sharing.plan(left, executor.how):
            say(text)
        with table.Live(Watch(workdir, cells)):
            for line in executor.run(left, workdir):
                ended.append(line)
                say(_told(line, workdir / "cells" / line["cell"]))
                if not (workdir / plan.NAME).is_file():  # what comes now could be read by no command
                    raise FileError(f"cannot read {str(workdir / plan.NAME)!r}: it was deleted while cells ran.")
    _report(cells, workdir)
    failed = [line for line in ended if line["status"] == "failed"]
    if failed:
        say(f"{len(failed)} of {len(cells)} cells failed:", sys.stderr)
        for line in failed:
            say(f"  {line['cell']}: {line['message']}", sys.stderr)
    done = {c.name for c in cells if finished(c, workdir)}
    held = [line for line in ended if line["status"] == HELD and line["cell"] not in done]
    if held:
        say(f"{len(held)} of {len(cells)} cells were left to other processes:", sys.stderr)
        for line in held:
            say(f"  {line['cell']}: {line['message']}", sys.stderr)
    if executor.code:
        say(f"stopped: {len(done)} of {len(cells)} cells are finished; the same command goes on from there")
        return executor.code
    return max((line["code"] for line in failed), default=launch.IN_USE if held else 0)


def _report(cells: list[Cell], workdir: pathlib.Path) -> None:
    from positionbias.reporting.report import is_fresh, write_report

    try:
        # Every run draws its own as it ends: of ten thousand cells, all of them again would take hours.
        stale = [cell.name for cell in cells if not is_fresh(workdir / "cells" / cell.name)]
        say(f"report: {write_report(workdir, stale)}")
    except ConfigError as error:
        say(f"no report: {error}", sys.stderr)


def _told(line: dict[str, Any], folder: pathlib.Path) -> str:
    from positionbias.evaluation.stored import read_summary

    if line["status"] == HELD:
        return f"cell {line['cell']} is left alone: {line['message']}"
    how = ELSEWHERE if line["message"] == ELSEWHERE else f"after {line['seconds']} s" if "seconds" in line else ""
    text = f"cell {line['cell']} {line['status']} {how}".rstrip()
    try:
        summary = read_summary(folder / "summary.json")
    except ConfigError as error:
        return f"{text}: {error}"
    result = measured(summary) if line["status"] == "finished" else ""
    return f"{text}: {result}" if result else text
