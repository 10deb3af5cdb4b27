"""`report.html` of a run or sweep folder."""

from __future__ import annotations

import os
import pathlib

from positionbias.files import WriteError, write_text
from positionbias.reporting.folder import Run, Sweep, read
from positionbias.reporting.run import run_page
from positionbias.reporting.sweep import sweep_page
from positionbias.spec import ConfigError


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Write `report.html` into a run folder, or into a sweep folder and each of its cells; return the path.

    The file is self-contained and the same for the same folder. Raises ConfigError if `workdir` is no such folder,
    holds a damaged file or cannot be written in, or if matplotlib is missing.
    """
    folder = pathlib.Path(workdir)
    found = read(folder)
    if isinstance(found, Run):
        return _write(folder, run_page(found))
    _write_cells(found)
    return _write(folder, sweep_page(found))


def _write_cells(sweep: Sweep) -> None:
    for run in sweep.cells.values():
        if run.config:  # in a folder without, a file would keep the cell from ever beginning there
            _write(run.path, run_page(run))


def _write(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "report.html"
    try:
        write_text(path, text)
    except WriteError as error:
        raise ConfigError(f"workdir: {error}") from None
    return path
