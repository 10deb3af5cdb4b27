"""What a run tells while it goes on: `metrics.jsonl` for machines, one line of progress for people."""

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


class Progress:
    """How far a run is: one line rewritten in place on a terminal, elsewhere a plain line a minute.

    Rates count from the first update, so that compiling is no part of them, and not what lies between `pause` and
    `resume`. While paused the terminal's line is cleared, for others to print there.
    """

    def __init__(self, stream: IO[str], total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._total, self._clock = stream, total_steps, clock
        self._terminal = stream.isatty()
        self._active, self._since = 0.0, clock()
        self._paused = False
        self._first: tuple[int, float] | None = None  # step and active seconds at the first update
        self._told = -math.inf  # when the last plain line was printed
        self._text, self._drawn = "", 0  # the line, and how much of the terminal's row it covers

    def update(self, step: int, loss: Any, accuracy: Any) -> None:
        """Tell step, and loss and accuracy as means over replicas."""
        active = self._seconds()
        self._first = self._first or (step, active)
        self._text = self._line(step, float(np.mean(loss)), float(np.mean(accuracy)), active)
        if self._terminal:
            self._draw()
        elif self._clock() - self._told >= PLAIN_SECONDS or step >= self._total:
            self._told = self._clock()
            self._write(self._text + "\n")

    def pause(self) -> None:
        """Stop counting time, for an evaluation or a save; the terminal's line is cleared."""
        if not self._paused:
            self._active, self._paused = self._seconds(), True
            if self._drawn:
                self._write("\r" + " " * self._drawn + "\r")
                self._drawn = 0

    def resume(self) -> None:
        """Count time again."""
        if self._paused:
            self._since, self._paused = self._clock(), False
            if self._terminal and self._text:
                self._draw()

    def close(self) -> None:
        """End the terminal's line; may be called twice."""
        if self._terminal and self._text:
            if not self._drawn:
                self._draw()
            self._write("\n")
        self._text, self._drawn = "", 0

    def _seconds(self) -> float:
        return self._active if self._paused else self._active + self._clock() - self._since

    def _line(self, step: int, loss: float, accuracy: float, active: float) -> str:
        parts = [
            f"step {step}/{self._total}",
            f"{100 * step // self._total}%",
            f"loss {loss:.4f}",
            f"accuracy {accuracy:.4f}",
        ]
        first_step, first_active = self._first or (step, active)
        if step > first_step and active > first_active:
            rate = (step - first_step) / (active - first_active)
            parts += [f"{rate:.3g} steps/s" if rate < 100 else f"{rate:.0f} steps/s", eta(self._total - step, rate)]
        return "  ".join(parts)

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


def eta(steps: int, rate: float) -> str:
    """`ETA 1:20`: how long `steps` take at `rate` steps a second."""
    minutes, seconds = divmod(round(steps / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"ETA {hours}:{minutes:02d}:{seconds:02d}" if hours else f"ETA {minutes}:{seconds:02d}"
