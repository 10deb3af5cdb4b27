"""`ledger.jsonl`: a line each time a cell begins or ends, appended by the process that it runs in.

    {"cell", "status": "running", "where"}
    {"cell", "status": "finished", "stopped", "failed" or "lost", "code", "message", "seconds", "where"}

A cell is lost when the process that it ran in is gone without a word, and it is about to be run again. One line at most
says of a cell that it is finished.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from positionbias.files import read_line, writing

NAME = "ledger.jsonl"


def note(workdir: pathlib.Path, line: dict[str, Any]) -> None:
    """Append a line, below one that a killed process left half written. Raises WriteError.

    Nothing is added to a cell that was noted as finished: of two processes that come upon it the first has said so.
    """
    path, name = workdir / NAME, json.dumps(line["cell"]).encode()
    with writing(path), open(path, "a+b") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)  # until it is closed
        ledger.seek(0)
        before = ledger.read()
        own = _read(_holding(before, name))
        if any(found["cell"] == line["cell"] and found["status"] == "finished" for found in own):
            return
        torn = before[-1:] not in (b"", b"\n")
        ledger.write(b"\n" * torn + f"{json.dumps(line)}\n".encode())
        ledger.flush()
        os.fsync(ledger.fileno())


def _holding(data: bytes, part: bytes) -> Iterator[bytes]:
    """The lines that hold a part, found without looking at all others: a ledger of ten thousand cells has megabytes."""
    at = data.find(part)
    while at >= 0:
        end = data.find(b"\n", at) + 1 or len(data)
        yield data[data.rfind(b"\n", 0, at) + 1 : end]
        at = data.find(part, end)


class Reader:
    """The last line of each cell, read again and again: what was read is not read anew, as lines are added alone."""

    def __init__(self, workdir: pathlib.Path) -> None:
        self._path, self._read_to = workdir / NAME, 0
        self._latest: dict[str, dict[str, Any]] = {}

    def latest(self) -> dict[str, dict[str, Any]]:
        """The last line of each cell, by its name."""
        if self._path.is_file():
            with open(self._path, "rb") as ledger:
                if ledger.seek(0, os.SEEK_END) < self._read_to:  # another one is there
                    self._read_to, self._latest = 0, {}
                ledger.seek(self._read_to)
                added = ledger.read()
            whole = added[: added.rfind(b"\n") + 1]
            self._read_to += len(whole)
            self._latest |= {str(line["cell"]): line for line in _read(whole.splitlines(keepends=True))}
        return self._latest


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines that can be read, each with its cell and status."""
    path = workdir / NAME
    return _read(path.read_bytes().splitlines(keepends=True)) if path.is_file() else []


def _read(texts: Iterable[bytes]) -> list[dict[str, Any]]:
    return [line for text in texts if (line := read_line(text)) and "cell" in line and "status" in line]
