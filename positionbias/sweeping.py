"""Running the cells of a sweep: the plan, the ledger, and the executor seam.

A sweep folder holds `plan.json` (every cell, written first), `ledger.jsonl` (one line each time a cell ends),
`cells/NAME/` (run folders) and `report.html`. A finished cell is never run again; a failed one does not stop the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, Protocol

from positionbias import launch, runtime
from positionbias.config import resolve
from positionbias.config.sweeps import Cell
from positionbias.files import FileError, read_json, write_json, writing
from positionbias.launch import say
from positionbias.spec import ConfigError


class Executor(Protocol):
    """Where cells run. Cells it is given are not finished; each yields how it ended, in any order."""

    def run(self, cells: list[Cell], workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
        """Ledger lines {"cell", "status", "code", "message", "seconds"}, one as each cell ends."""
        ...


class LocalExecutor:
    """Cells one after another in this process. Each compiles its own program; the compile cache serves them all."""

    def run(self, cells: list[Cell], workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
        for number, cell in enumerate(cells, 1):
            say(f"cell {number} of {len(cells)}: {cell.name}")
            started = time.monotonic()
            line = self._one(cell, workdir / "cells" / cell.name)
            yield {"cell": cell.name, **line, "seconds": round(time.monotonic() - started, 1)}
            if line["code"] in (130, 143):
                return

    def _one(self, cell: Cell, workdir: pathlib.Path) -> dict[str, Any]:
        from positionbias.reporting.report import write_report
        from positionbias.training.loop import train
        from positionbias.training.run_folder import FolderInUse

        try:
            outcome = train(cell.config, workdir, sys.orig_argv, say)
        except FolderInUse as error:
            return {"status": "failed", "code": launch.IN_USE, "message": str(error)}
        except ConfigError as error:
            return {"status": "failed", "code": 2, "message": str(error)}
        except (FileError, MemoryError) as error:
            return {"status": "failed", "code": 1, "message": str(error)}
        except Exception as error:  # whatever breaks one cell must not lose the others
            say(traceback.format_exc().rstrip(), sys.stderr)
            return {"status": "failed", "code": 1, "message": f"{type(error).__name__}: {error}".splitlines()[0]}
        with contextlib.suppress(ConfigError):  # the sweep's own report says what is missing
            write_report(workdir)
        return {"status": outcome.status, "code": outcome.code, "message": outcome.message}


def run(cells: list[Cell], workdir: pathlib.Path, executor: Executor, name: str) -> int:
    """Run what is not finished, write the report, list what failed; returns the exit code.

    Every cell is built before anything is written: ConfigError for the whole sweep if one of them cannot be. Of two
    processes in one folder the second is refused.
    """
    from positionbias.training.run_folder import FolderInUse, locked

    plan = {
        "name": name,
        "command": sys.orig_argv,
        "cells": [
            {"name": c.name, "hash": resolve.config_hash(c.config), "overrides": c.overrides, "curve": c.curve}
            for c in cells
        ],
    }
    _same_plan(workdir, plan)
    _build(cells)
    try:
        with locked(workdir):
            _same_plan(workdir, plan)  # again: another sweep may have begun here in between
            write_json(workdir / "plan.json", plan)
            return _run(cells, workdir, executor)
    except FolderInUse as error:
        say(f"error: {error}", sys.stderr)
        return launch.IN_USE


def _run(cells: list[Cell], workdir: pathlib.Path, executor: Executor) -> int:
    left = [c for c in cells if not _finished(workdir / "cells" / c.name)]
    if len(left) < len(cells):
        say(f"{len(cells) - len(left)} of {len(cells)} cells are finished already")
    ended = []
    for line in executor.run(left, workdir) if left else ():
        ended.append(line)
        _note(workdir / "ledger.jsonl", line)
        say(_told(line, workdir / "cells" / line["cell"]))
    from positionbias.reporting.report import write_report

    try:
        say(f"report: {write_report(workdir)}")
    except ConfigError as error:
        say(f"no report: {error}", sys.stderr)
    failed = [line for line in ended if line["status"] == "failed"]
    if failed:
        say(f"{len(failed)} of {len(cells)} cells failed:", sys.stderr)
        for line in failed:
            say(f"  {line['cell']}: {line['message']}", sys.stderr)
    stopped = [line["code"] for line in ended if line["code"] in (130, 143)]
    if stopped:
        done = sum(_finished(workdir / "cells" / cell.name) for cell in cells)
        say(f"stopped: {done} of {len(cells)} cells are finished; the same command goes on from there")
    return stopped[0] if stopped else max((line["code"] for line in failed), default=0)


def _note(path: pathlib.Path, line: dict[str, Any]) -> None:
    """Append a line to the ledger, below one that a killed sweep left half written."""
    with writing(path), open(path, "a+b") as ledger:
        ledger.seek(max(ledger.seek(0, os.SEEK_END) - 1, 0))
        torn = ledger.read() not in (b"", b"\n")
        ledger.write(b"\n" * torn + f"{json.dumps(line)}\n".encode())
        ledger.flush()
        os.fsync(ledger.fileno())


def _build(cells: list[Cell]) -> None:
    """Set JAX up for the cell with most devices, finished or not, so that a sweep that goes on finds the same; then
    build every cell as its run will."""
    from positionbias.training import auto

    runtime.configure(max(auto.virtual_devices(c.config, runtime.cores()) for c in cells))
    import jax

    from positionbias.config.build import build

    for cell in cells:
        try:
            auto.resolve(build(cell.config), jax.default_backend(), len(jax.devices()))
        except ConfigError as error:
            raise ConfigError(f"cell {cell.name}: {error}") from None


def _same_plan(workdir: pathlib.Path, plan: dict[str, Any]) -> None:
    path = workdir / "plan.json"
    # A sweep that was killed early has left no more than these.
    early = (".lock", ".plan.json.tmp")
    if workdir.is_dir() and not path.exists() and any(p.name not in early for p in workdir.iterdir()):
        raise ConfigError(
            f"--workdir: {str(workdir)!r} holds something else; allowed: a new, an empty or a sweep folder."
        )
    try:
        before = read_json(path)
        if before is None:
            return
        old = {str(c["name"]): c["hash"] for c in before["cells"]}
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"--workdir: {str(path)!r} cannot be read; allowed: a sweep folder as it was written."
        ) from None
    new = {c["name"]: c["hash"] for c in plan["cells"]}
    changed = sorted(n for n in old.keys() & new.keys() if old[n] != new[n])
    if changed or old.keys() - new.keys():
        which = (
            f"cell {changed[0]!r} has another config" if changed else f"cell {min(old.keys() - new.keys())!r} is gone"
        )
        raise ConfigError(
            f"--workdir: {str(workdir)!r} belongs to another sweep, {which}; allowed: a new folder, or the same"
            f" cells and more."
        )


def _finished(workdir: pathlib.Path) -> bool:
    try:
        return dict(read_json(workdir / "manifest.json") or {}).get("status") == "finished"
    except (TypeError, ValueError):
        return False


def _told(line: dict[str, Any], workdir: pathlib.Path) -> str:
    from positionbias.evaluation.stored import read_summary

    text = f"cell {line['cell']} {line['status']} after {line['seconds']} s"
    try:
        summary = read_summary(workdir / "summary.json")
    except ConfigError as error:
        return f"{text}: {error}"
    if line["status"] == "finished" and summary and summary["of"] != 0:  # accuracy of what has no training says nothing
        mean, low, high = (summary["accuracy"][bound] for bound in ("mean", "low", "high"))
        band = f" [{low:.4f}, {high:.4f}]" if low is not None else ""
        text += f": accuracy {mean:.4f}{band}" if mean is not None else ""
    return text
