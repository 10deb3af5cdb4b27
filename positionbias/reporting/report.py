"""`report.html` of a run or sweep folder."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection
from contextlib import AbstractContextManager

from positionbias.files import WriteError, one_at_a_time, one_waits, write_text
from positionbias.reporting.folder import Run, Sweep, cells_of, read, read_plan
from positionbias.reporting.run import run_page
from positionbias.reporting.sweep import sweep_page
from positionbias.spec import ConfigError


def write_report(workdir: str | os.PathLike, cells: Collection[str] | None = None) -> pathlib.Path:
    """Write `report.html` into a run folder, or into a sweep folder and its `cells` (all, or those named); the path.

    The file is self-contained and the same for the same folder. While others write there, it is one of their moments;
    of a sweep, the file that is written last tells the newest, so that one who names cells leaves it to another process
    that waits to write it. Raises ConfigError if `workdir` is no such folder, holds a damaged file (that of a cell is
    told in the report of its sweep instead) or cannot be written in, or if matplotlib is missing.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "plan.json").is_file():
        found = read(folder)
        assert isinstance(found, Run)
        return _write(folder, run_page(found))
    for name in cells_of(folder, read_plan(folder)) if cells is None else cells:
        home = folder / "cells" / name
        # In a folder without a config, a file would keep the cell from ever beginning there.
        if (home / "config.json").is_file():
            try:
                run = read(home)
            except ConfigError:  # a damaged cell, which the page of the sweep tells
                continue
            assert isinstance(run, Run)
            _write(home, run_page(run))
    path = folder / "report.html"
    try:
        guard: AbstractContextManager[bool | None] = one_at_a_time(path) if cells is None else one_waits(path)
        with guard as mine:
            if mine is not False:
                sweep = read(folder)
                assert isinstance(sweep, Sweep)
                _write(folder, sweep_page(sweep))
    except WriteError as error:
        raise ConfigError(f"workdir: {error}") from None
    return path


def is_fresh(folder: pathlib.Path) -> bool:
    """Whether a run folder's report is there and not older than what it is made from."""
    drawn = _written(folder / "report.html")
    made_from = ("config.json", "manifest.json", "metrics.jsonl", "summary.json", "evals", "analysis")
    return drawn is not None and all((_written(folder / name) or 0) <= drawn for name in made_from)


def _written(path: pathlib.Path) -> int | None:
    """When, in ns; None if it is not there, or was deleted a moment ago."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _write(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "report.html"
    try:
        write_text(path, text)
    except WriteError as error:
        raise ConfigError(f"workdir: {error}") from None
    return path
