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
from typing import Any

from positionbias.files import read_lines, writing

NAME = "ledger.jsonl"


def note(workdir: pathlib.Path, line: dict[str, Any]) -> None:
    """Append a line, below one that a killed process left half written. Raises WriteError.

    Nothing is added to a cell that was noted as finished: of two processes that come upon it the first has said so.
    """
    path = workdir / NAME
    with writing(path), open(path, "a+b") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)  # until it is closed
        if any(before["status"] == "finished" for before in lines(workdir) if before["cell"] == line["cell"]):
            return
        ledger.seek(max(ledger.seek(0, os.SEEK_END) - 1, 0))
        torn = ledger.read() not in (b"", b"\n")
        ledger.write(b"\n" * torn + f"{json.dumps(line)}\n".encode())
        ledger.flush()
        os.fsync(ledger.fileno())


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines that can be read, each with its cell and status."""
    return [line for _, line in read_lines(workdir / NAME) if line and "cell" in line and "status" in line]


def latest(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The last line of each cell."""
    return {str(line["cell"]): line for line in lines(workdir)}
