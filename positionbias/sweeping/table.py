"""The table of a sweep: a row a cell, redrawn in place on a terminal while cells run, a line a minute elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

from positionbias.config.sweeps import Cell
from positionbias.launch import say
from positionbias.sweeping import plan
from positionbias.sweeping.standing import STATES, Standing, Watch

EVERY = 1.0  # seconds between two looks for a terminal
PLAIN_SECONDS = 60.0  # between lines of progress where there is no terminal
SIZE = os.terminal_size((80, 24))  # of a terminal that does not say


def show(cells: Sequence[Cell], workdir: pathlib.Path, planned: dict[str, Any]) -> int:
    """Print where the cells of a sweep stand; returns the exit code. ConfigError if the folder is another sweep's.

    Where no sweep has begun that is told instead: the folder's name may be mistyped.
    """
    plan.check(workdir, planned)
    if not (workdir / plan.NAME).exists():
        how = "holds no plan" if workdir.is_dir() else "does not exist"
        say(f"nothing there yet: {str(workdir.absolute())!r} {how}, so none of {len(planned['cells'])} cells has begun")
        return 0
    for line in table(Watch(workdir, cells).look()):
        say(line)
    return 0


def summed_up(standings: Sequence[Standing]) -> str:
    """`12 cells: 3 finished, 7 waiting, 2 running`."""
    return f"{len(standings)} cell{'' if len(standings) == 1 else 's'}: {counted(standings)}"


def counted(standings: Sequence[Standing]) -> str:
    """`3 finished, 7 waiting, 2 running`."""
    counts = Counter(standing.state for standing in standings)
    return ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])


def table(standings: Sequence[Standing], most: int | None = None) -> list[str]:
    """A line that counts, and a row for each cell, or for the `most` of them that are worth it, and what is left."""
    shown = list(standings)
    if most is not None and len(shown) > most:
        ranked = sorted(standings, key=lambda standing: STATES.index(standing.state))
        kept = {standing.name for standing in ranked[: max(most - 1, 0)]}
        shown = [standing for standing in standings if standing.name in kept]
    rows = [
        (
            one.name,
            one.state,
            f"{one.step}/{one.steps}" if one.step else "",
            f"{100 * one.step // one.steps}%" if one.step and one.steps else "",
            one.eta,
            one.measured,
            one.told,
        )
        for one in shown
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [summed_up(standings)]
    for row in rows:
        parts = (text.ljust(width) for text, width in zip(row, widths, strict=True) if width)
        lines.append("  ".join(parts).rstrip())
    if len(shown) < len(standings):
        left = [one for one in standings if one not in shown]
        lines.append(f"and {counted(left)}")
    return lines


class Live:
    """A context manager that shows the table while cells run.

    On a terminal it stays below all that is printed inside the block. Elsewhere a line a minute counts the cells, and
    says how far those are that run.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch, self._ends, self._drawn = watch, threading.Event(), 0
        self._turn = threading.RLock()  # of who prints
        self._streams: dict[str, TextIO] = {}
        self._told = ""

    def __enter__(self) -> Live:
        self._out, self._terminal = sys.stdout, sys.stdout.isatty()
        for name in ("stdout", "stderr") if self._terminal else ():
            stream = getattr(sys, name)
            if stream.isatty():
                self._streams[name] = stream
                setattr(sys, name, _Above(self, stream))
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ends.set()
        self._thread.join()
        for name, stream in self._streams.items():
            getattr(sys, name).close()
            setattr(sys, name, stream)
        if self._terminal:
            self._draw()

    def above(self, stream: TextIO, text: str) -> None:
        """Print whole lines where the table is, and the table below them."""
        with self._turn, contextlib.suppress(OSError):
            self._erase()
            stream.write(text)
            stream.flush()
            self._redraw()

    def _go(self) -> None:
        while not self._ends.wait(EVERY if self._terminal else PLAIN_SECONDS):
            if self._terminal:
                self._draw()
            else:
                self._tell()

    def _draw(self) -> None:
        standings = self._watch.look()
        with self._turn:
            self._standings = standings
            self._erase()
            self._redraw()

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}A\r\x1b[J")
            self._drawn = 0

    def _redraw(self) -> None:
        if not hasattr(self, "_standings"):
            return
        try:
            size = os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            size = SIZE
        width, height = size.columns or SIZE.columns, size.lines or SIZE.lines
        # A row stays free for the cursor, and a column: a full one makes some terminals go on to the next row.
        lines = [line[: width - 1] for line in table(self._standings, max(height - 3, 1))]
        self._write("".join(f"{line}\n" for line in lines))
        self._drawn = len(lines)

    def _tell(self) -> None:
        standings = self._watch.look()
        running = [
            f"{one.name} {one.step}/{one.steps} {one.eta}".rstrip() for one in standings if one.state == "running"
        ]
        text = "; ".join([summed_up(standings), *running])
        if text != self._told:
            self._told = text
            say(text)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more: no reason to lose the sweep
            self._out.write(text)
            self._out.flush()


class _Above(io.TextIOBase):
    """Stands for a terminal's stream while a table is below: no terminal itself, and whole lines only."""

    def __init__(self, live: Live, stream: TextIO) -> None:
        self._live, self._stream, self._begun = live, stream, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._live.above(self._stream, whole + newline)
        return len(text)

    def close(self) -> None:
        if self._begun:
            self._live.above(self._stream, f"{self._begun}\n")
            self._begun = ""
        super().close()
