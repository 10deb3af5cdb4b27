"""Stopping cleanly: SIGINT and SIGTERM become a flag that the loop reads between dispatches."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from positionbias import hosts


class StopSignal:
    """Context manager; inside it the first SIGINT or SIGTERM is remembered, a second SIGINT interrupts.

    The first is acknowledged on standard error as it arrives, and by a thread: Python's handlers run only when the
    dispatch in flight gives the main thread back. Outside the main thread, where Python cannot set handlers, it
    remembers nothing. Of several processes that train one run, which must stop at the same step, all know what one was
    told from the next time on that they `agree`.
    """

    def __init__(self) -> None:
        self._raised: int | None = None
        self._agreed: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def number(self) -> int | None:
        """The number of the signal that ends the run, None as long as there was none."""
        return self._agreed if hosts.several() else self._raised

    def agree(self) -> None:
        """Exchange what was remembered with the other processes, all of which must call this at the same step."""
        if hosts.several():
            self._agreed = hosts.largest(self._raised or 0) or None

    @property
    def name(self) -> str:
        """What the signal is called, `SIGINT (Ctrl-C)` or `SIGTERM`; empty if there was none."""
        if self.number is None:
            return ""
        return "SIGINT (Ctrl-C)" if self.number == signal.SIGINT else signal.Signals(self.number).name

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._reads, self._writes = os.pipe()
            os.set_blocking(self._writes, False)
            self._fd_before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=_acknowledge, args=(self._reads,), daemon=True)
            self._thread.start()
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            os.close(self._writes)  # which ends the thread
            self._thread.join()
            os.close(self._reads)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._raised is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._raised = number


def _acknowledge(pipe: int) -> None:
    """Print one line for the first SIGINT or SIGTERM whose number arrives in `pipe`; returns when it is closed."""
    told = False
    while arrived := os.read(pipe, 1):
        if told or arrived[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        told = True
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: no reason to lose the run
            start = (
                "\n" if sys.stderr.isatty() else ""
            )  # below the progress line, which then goes on in a row of its own
            again = "Ctrl-C again" if arrived[0] == signal.SIGINT else "Ctrl-C"
            print(
                f"{start}stopping as soon as steps or an evaluation under way are done and saved; {again} stops without"
                " saving",
                file=sys.stderr,
                flush=True,
            )
