"""Cells of one program whose replicas are trained side by side, as one run (`training/together.py`)."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from positionbias.config.sweeps import Cell
from positionbias.launch import say
from positionbias.spec import ConfigError
from positionbias.sweeping.cell import finished, interrupted, note_begin, note_end

if TYPE_CHECKING:
    from positionbias.training.reuse import Programs

MOST = 64  # cells at once: each has two files open all the while


def run_together(
    cells: list[Cell], workdir: pathlib.Path, command: list[str], programs: Programs
) -> Iterator[list[dict[str, Any]]]:
    """Train cells of one program side by side, those that stand at the same step, as far as that can be; the lines of
    how they ended, each time some have.

    Cells of which there is no line are to be run alone: the only one at its step, and what is finished, held by another
    process, or broken, which each can tell best by itself. If memory does not suffice, they are halved. What is
    compiled is handed on in `programs`, to as many replicas as before.
    """
    at_step: dict[int, list[Cell]] = {}
    for cell in cells:
        at_step.setdefault(_step(workdir / "cells" / cell.name), []).append(cell)
    waiting = [some[i : i + MOST] for some in at_step.values() for i in range(0, len(some), MOST)]
    while waiting:
        batch = [cell for cell in waiting.pop(0) if _ready(cell, workdir)]
        if len(batch) < 2:
            continue
        say(f"side by side: {', '.join(cell.name for cell in batch)}")
        try:
            yield _together(batch, workdir, command, programs)
        except MemoryError as error:
            say(f"not all side by side: {error}")
            waiting[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        except Exception as error:  # whatever breaks one of several cells is for that one to tell
            say(f"not side by side: {str(error) or type(error).__name__}".splitlines()[0])


def _together(batch: list[Cell], workdir: pathlib.Path, command: list[str], programs: Programs) -> list[dict[str, Any]]:
    from positionbias.reporting.report import write_report
    from positionbias.training.together import train_together

    started = time.monotonic()
    for cell in batch:
        note_begin(cell, workdir)
    folders = [workdir / "cells" / cell.name for cell in batch]
    try:
        outcomes = train_together([cell.config for cell in batch], folders, command, say, programs=programs)
    except (KeyboardInterrupt, SystemExit) as stop:
        for cell in batch:
            note_end(cell, workdir, started, *interrupted(stop))
        raise
    for folder in folders:
        with contextlib.suppress(ConfigError):  # the sweep's own report says what is missing
            write_report(folder)
    return [
        note_end(cell, workdir, started, outcome.status, outcome.code, outcome.message)
        for cell, outcome in zip(batch, outcomes, strict=True)
    ]


def _step(folder: pathlib.Path) -> int:
    """The step of the newest checkpoint, 0 before the first."""
    from positionbias.training import checkpoint

    return max(checkpoint.steps(folder / "checkpoints"), default=0)


def _ready(cell: Cell, workdir: pathlib.Path) -> bool:
    """Whether a cell can begin here: not finished, and held by no other process."""
    from positionbias.training.run_folder import FolderInUse, locked

    try:
        with locked(workdir / "cells" / cell.name):
            return not finished(cell, workdir)
    except (FolderInUse, ConfigError):
        return False
