"""Where the cells of a sweep stand, read from the ledger and their run folders, wherever they run."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from positionbias.config.sweeps import Cell
from positionbias.files import FileError, read_json
from positionbias.spec import ConfigError
from positionbias.sweeping import ledger

STATES = ("running", "failed", "stopped", "waiting", "finished")  # in the order in which they are worth a row
SILENT = 600.0  # seconds without a sign of a run after which that is told: it may have been killed
SLOWEST = 1e-9  # steps a second below which no time is told: decades, or what a damaged line makes of it
TAIL = 2**16  # bytes at the end of metrics.jsonl that are read


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where one cell stands."""

    name: str
    state: str  # one of STATES
    step: int
    steps: int
    eta: str = ""  # as the progress line of a run has it; empty where it is not known
    measured: str = ""  # by the newest evaluation, or else on the batches of training
    told: str = ""  # why it failed or waits again, in one line


def measured(summary: Mapping[str, Any]) -> str:
    """`accuracy 0.5900 [0.5880, 0.5920]`, the loss where a task is judged by it; empty before training."""
    if not summary or summary["steps"] == 0 or summary["of"] == 0:  # accuracy of what has no training says nothing
        return ""
    what = "loss" if "loss" in summary else "accuracy"
    mean, low, high = (summary[what][bound] for bound in ("mean", "low", "high"))
    if mean is None:
        return ""
    return f"{what} {mean:.4f}" + (f" [{low:.4f}, {high:.4f}]" if low is not None else "")


class Watch:
    """Looks at cells of a sweep again and again; what is finished is read once."""

    def __init__(self, workdir: pathlib.Path, cells: Sequence[Cell]) -> None:
        self._workdir, self._cells = workdir, cells
        self._ledger = ledger.Reader(workdir)
        self._finished: dict[str, Standing] = {}
        self._summaries: dict[str, tuple[int, str]] = {}  # when it was written, and what it says

    def look(self) -> list[Standing]:
        """Where the cells stand now, in their order. What is damaged, or not there yet, is left out."""
        said, home = self._ledger.latest(), self._workdir / "cells"
        there = set(os.listdir(home)) if home.is_dir() else set[str]()  # one question instead of one a cell
        found = []
        for cell in self._cells:
            if cell.name in self._finished:
                found.append(self._finished[cell.name])
            elif cell.name in said or cell.name in there:
                found.append(self._one(cell, home / cell.name, said.get(cell.name, {})))
            else:
                found.append(Standing(cell.name, "waiting", 0, cell.config.train.steps))
        return found

    def _one(self, cell: Cell, folder: pathlib.Path, said: Mapping[str, Any]) -> Standing:
        manifest = _manifest(folder)
        there = manifest.get("hash", cell.hash)
        state = _state(manifest.get("status") if there == cell.hash else None, said["status"] if said else None)
        if there != cell.hash:
            told = f"its folder holds a run of another config, {there}"
            return Standing(cell.name, state, 0, cell.config.train.steps, told=f"{_before(said)}{told}")
        lines = _tail(folder / "metrics.jsonl")
        steps = cell.config.train.steps
        step = manifest.get("step", 0)
        if state in ("running", "failed") and lines:  # its manifest tells of the newest checkpoint
            step = max(step, lines[-1]["step"])
        running = state == "running"
        standing = Standing(
            cell.name,
            state,
            step,
            steps,
            _eta(lines, steps) if running else "",
            self._measured(folder) or _on_batches(lines),
            _silence(folder) if running else _reason(state, folder, manifest, said),
        )
        if state == "finished":
            self._finished[cell.name] = standing
        return standing

    def _measured(self, folder: pathlib.Path) -> str:
        from positionbias.evaluation.stored import read_summary
        from positionbias.evaluation.table import when

        path = folder / "summary.json"
        try:
            written = path.stat().st_mtime_ns
            if self._summaries.get(folder.name, (0, ""))[0] != written:
                summary = read_summary(path)
                text = measured(summary)
                steps, of = summary.get("steps"), summary.get("of")
                if text and steps is not None and of is not None and steps < of:
                    text += f" {when(summary)}"
                self._summaries[folder.name] = (written, text)
        except (OSError, ConfigError, FileError):
            return ""
        return self._summaries[folder.name][1]


def _state(manifest: str | None, said: str | None) -> str:
    """One of STATES, from the status in the manifest and the newest one in the ledger."""
    if manifest == "finished":
        return "finished"
    if said in ("failed", "running", "stopped"):
        return said
    if said == "lost":  # and not begun again
        return "waiting"
    return manifest if manifest in STATES else "waiting"


def _before(said: Mapping[str, Any]) -> str:
    """What the ledger knows of a cell whose folder no longer tells it; empty if it never ended well."""
    if not said or said["status"] != "finished":
        return ""
    where = f" in {said['where']}" if isinstance(said.get("where"), str) else ""
    return f"was finished{where}, but "


def _reason(state: str, folder: pathlib.Path, manifest: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    if state == "finished":
        return ""
    if not manifest and (before := _before(said)):
        return f"{before}{'its manifest.json cannot be read' if folder.is_dir() else 'its folder is gone'}"
    told = str(said.get("message") or manifest.get("message") or "")
    return told.partition("\n")[0]


def _manifest(folder: pathlib.Path) -> dict[str, Any]:
    from positionbias.evaluation.stored import misfit

    try:
        found = read_json(folder / "manifest.json")
    except (OSError, ValueError):
        return {}
    return found if misfit(found, {"status": str, "step": int, "hash?": str}) is None else {}


def _tail(path: pathlib.Path) -> list[dict[str, Any]]:
    """The last lines of a metrics file, but for what cannot be read: half a line that is being written."""
    from positionbias.evaluation.stored import misfit

    try:
        with open(path, "rb") as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - TAIL)
            stream.seek(start)
            texts = stream.read().splitlines()
    except OSError:
        return []
    found = []
    for text in texts[1 if start else 0 :]:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if misfit(line, {"step": int, "seconds": float}) is None:
            found.append(line)
    return found


def _eta(lines: list[dict[str, Any]], steps: int) -> str:
    from positionbias.training.writers import eta

    if len(lines) < 2:
        return ""
    done, seconds = (lines[-1][name] - lines[0][name] for name in ("step", "seconds"))
    rate = done / seconds if done > 0 and seconds > 0 else 0.0
    return eta(steps - lines[-1]["step"], rate) if rate > SLOWEST else ""


def _on_batches(lines: list[dict[str, Any]]) -> str:
    losses = lines[-1].get("loss") if lines else None
    known = [x for x in losses if isinstance(x, int | float)] if isinstance(losses, list) else []
    return f"training loss {sum(known) / len(known):.4f}" if known else ""


def _silence(folder: pathlib.Path) -> str:
    """How long a run that should be running has not been heard of, if that is long."""
    signs = []
    for name in ("manifest.json", "metrics.jsonl", ".lock"):
        try:
            signs.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    silent = time.time() - max(signs, default=time.time())
    return f"no sign of it for {silent / 60:.0f} minutes" if silent > SILENT else ""
