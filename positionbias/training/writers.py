"""What a run tells while it goes on: `metrics.jsonl` for machines, a line of progress for people."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import IO, Any, BinaryIO

import numpy as np

from positionbias.evaluation.stored import NUMBER, misfit
from positionbias.files import as_list, read_lines, sync, write_text, writing
from positionbias.spec import ConfigError

METRICS = ("loss", "accuracy", "gradient_norm")
LINE = {"step": int, **{f"{name}?": [NUMBER] for name in METRICS}}  # what readers rely on
PLAIN_SECONDS = 60.0  # between lines of progress where there is no terminal
WIDTH = 80  # of a terminal that does not say


# ----------------------------------------------------------------------------------------------------------- metrics


class MetricsWriter:
    """Appends one line of strict JSON a logging interval; reading a float back gives the same bits."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._stream: BinaryIO | None = None
        self._written = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The digest of all lines, those that `cut_back` left and those written since."""
        return self._written.hexdigest()

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; arrays become lists. Raises WriteError, and ValueError on a number that is not finite."""
        text = left = f"{json.dumps(line, allow_nan=False, default=as_list)}\n".encode()
        with writing(self.path):
            if self._stream is None:
                # Without a buffer: what a full disk did not take must not come back when the file is closed.
                self._stream = open(self.path, "ab", buffering=0)  # noqa: SIM115  (open from line to line)
            while left:
                left = left[self._stream.write(left) :]
        self._written.update(text)

    def sync(self) -> None:
        """Wait until every line written is on the disk. Raises WriteError."""
        if self._stream is not None:
            with writing(self.path):
                os.fsync(self._stream.fileno())
                sync(self.path.parent)

    def close(self) -> None:
        """Close the file until the next line; may be called twice."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def cut_back(self, step: int, digest: str | None = None) -> None:
        """Drop the lines after `step`, and a last one that a killed run left half written. Atomic.

        Raises ConfigError as `read_metrics` does, or where lines are left that are not those of which `digest` was the
        digest, and then nothing is dropped. No line at all is what they leave who take such a file away.
        """
        self.close()
        kept = "".join(text for text, line in _checked(self.path) if line["step"] <= step)
        self._written = hashlib.sha256(kept.encode())
        if kept and digest not in (None, self.digest):
            raise ConfigError(
                f"workdir: {str(self.path)!r} does not hold what was written up to step {step};"
                " allowed: the file as it was written, or none."
            )
        if self.path.exists():
            write_text(self.path, kept)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, [] where there is none, without a last line that is still being written.

    Raises ConfigError naming the line if another cannot be read, or has other replicas than the first.
    """
    return [line for _, line in _checked(path)]


def _checked(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Each line's text and content, for `read_metrics`."""
    lines = list(read_lines(path))
    if lines and lines[-1][1] is None:
        lines.pop()
    first = (lines[0][1] if lines else None) or {}
    for number, (_, line) in enumerate(lines, start=1):
        place = misfit(line, LINE)
        if place is None and line and first:
            place = next((n for n in METRICS if len(line.get(n) or ()) != len(first.get(n) or ())), None)
        if place is not None:
            where = f" at {place!r}" if place else ""
            raise ConfigError(
                f"workdir: line {number} of {str(path)!r} is not a line of metrics{where};"
                " allowed: the file as it was written, or none."
            )
    return [(text, line) for text, line in lines if line is not None]


# ---------------------------------------------------------------------------------------------------------- progress


class Line:
    """One line of progress: rewritten in place on a terminal, elsewhere a plain line a minute."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._terminal = stream.isatty()
        self._told = -math.inf  # when the last plain line was printed
        self._text, self._drawn = "", 0  # the line, and how much of the terminal's row it covers

    def _show(self, text: str, at_once: bool = False) -> None:
        """Show the text; a plain line less than a minute after the last one if it is to be told `at_once`."""
        self._text = text
        if self._terminal:
            self._draw()
        elif self._clock() - self._told >= PLAIN_SECONDS or at_once:
            self._told = self._clock()
            self._write(text + "\n")

    def _clear(self) -> None:
        """Take the line off the terminal, for others to print there."""
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _draw(self) -> None:
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns or WIDTH
        except (OSError, ValueError):
            width = WIDTH
        # One column stays free: a full row makes some terminals go on to the next.
        shown = self._text[: width - 1]
        self._write("\r" + shown.ljust(min(self._drawn, width - 1)))
        self._drawn = len(shown)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more: no reason to lose the run
            self._stream.write(text)
            self._stream.flush()


class Progress(Line):
    """How far a run is.

    Rates count from the first update, so that compiling is no part of them, and not what lies between `pause` and
    `resume`. While paused the terminal's line is cleared, for others to print there.
    """

    def __init__(self, stream: IO[str], total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._total = total_steps
        self._active, self._since = 0.0, clock()
        self._paused = False
        self._first: tuple[int, float] | None = None  # step and active seconds at the first update

    def update(self, step: int, loss: Any, accuracy: Any) -> None:
        """Tell step, and loss and accuracy as means over replicas."""
        active = self._seconds()
        self._first = self._first or (step, active)
        measured = [f"loss {float(np.mean(loss)):.4f}", f"accuracy {float(np.mean(accuracy)):.4f}"]
        parts = [*how_far("step", step, self._total), *measured, *pace("step", step, self._total, active, self._first)]
        self._show("  ".join(parts), at_once=step >= self._total)

    def pause(self) -> None:
        """Stop counting time, for an evaluation or a save; the terminal's line is cleared."""
        if not self._paused:
            self._active, self._paused = self._seconds(), True
            self._clear()

    def resume(self) -> None:
        """Count time again."""
        if self._paused:
            self._since, self._paused = self._clock(), False
            if self._terminal and self._text:
                self._draw()

    def evaluating(self) -> Evaluating:
        """The line of an evaluation, where that of the run is; for while it is paused."""
        return Evaluating(self._stream, self._clock)

    def close(self) -> None:
        """End the terminal's line; may be called twice."""
        if self._terminal and self._text:
            if not self._drawn:
                self._draw()
            self._write("\n")
        self._text, self._drawn = "", 0

    def _seconds(self) -> float:
        return self._active if self._paused else self._active + self._clock() - self._since


class Evaluating(Line):
    """A context manager that shows how far an evaluation is, in items of every replica.

    Of one that takes less than a minute nothing is printed where there is no terminal, and on one nothing stays.
    """

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._told = clock()
        self._first: tuple[int, float] | None = None  # items and seconds at the first update, after compiling

    def __enter__(self) -> Evaluating:
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear()

    def update(self, done: int, total: int) -> None:
        """Tell how many items of how many are measured."""
        now = self._clock()
        self._first = self._first or (done, now)
        self._show("  ".join([*how_far("item", done, total), *pace("item", done, total, now, self._first)]))


def how_far(what: str, done: int, total: int) -> list[str]:
    """`step 20/600` and `3%`."""
    return [f"{what} {done}/{total}", f"{100 * done // total}%"]


def pace(what: str, done: int, total: int, seconds: float, first: tuple[int, float]) -> list[str]:
    """`10 steps/s` and `ETA 1:20`, from what was `first` done and when; nothing as long as that is all."""
    if done <= first[0] or seconds <= first[1]:
        return []
    rate = (done - first[0]) / (seconds - first[1])
    return [f"{rate:.3g} {what}s/s" if rate < 100 else f"{rate:.0f} {what}s/s", eta(total - done, rate)]


def eta(steps: int, rate: float) -> str:
    """`ETA 1:20`: how long `steps`, or items, take at `rate` a second."""
    minutes, seconds = divmod(round(steps / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"ETA {hours}:{minutes:02d}:{seconds:02d}" if hours else f"ETA {minutes}:{seconds:02d}"
