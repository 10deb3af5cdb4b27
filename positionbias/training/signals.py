"""Stopping cleanly: SIGINT and SIGTERM become a flag that the loop reads between dispatches."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignal:
    """Context manager; inside it the first SIGINT or SIGTERM is remembered, a second SIGINT interrupts at once.

    Outside the main thread, where Python cannot set handlers, it remembers nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """What the signal is called, `SIGINT (Ctrl-C)` or `SIGTERM`; empty if there was none."""
        if self.number is None:
            return ""
        return "SIGINT (Ctrl-C)" if self.number == signal.SIGINT else signal.Signals(self.number).name

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
