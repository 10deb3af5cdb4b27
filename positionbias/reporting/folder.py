"""What a report reads of a run folder or a sweep folder. Anything may be missing: a run can stop at any moment."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from positionbias.files import read_json, read_lines
from positionbias.spec import ConfigError


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder; a file that is not there is an empty mapping or list."""

    path: pathlib.Path
    config: dict[str, Any]  # config.json: {"config": {...}, "hash": ..., "command": [...]}
    manifest: dict[str, Any]  # manifest.json: {"status": ..., "step": ..., "commit": ..., ...}
    metrics: list[dict[str, Any]]  # metrics.jsonl: {"step", "seconds", "loss": [R], "accuracy": [R]} a line
    summary: dict[str, Any]  # summary.json

    @property
    def settings(self) -> dict[str, Any]:
        """The config itself."""
        return self.config.get("config", {})

    @property
    def name(self) -> str:
        """The run's name: that of its folder for a cell of a sweep, else of its config or else of its folder."""
        home = self.path.absolute()
        if home.parent.name == "cells" and (home.parent.parent / "plan.json").is_file():
            return home.name
        return str(self.settings.get("name") or home.name)

    @property
    def status(self) -> str:
        """`running`, `finished`, `stopped` or `failed`; `not started` without a manifest."""
        return str(self.manifest.get("status", "not started"))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep folder: its cells in the order of the plan, and the last line the ledger has of each."""

    path: pathlib.Path
    plan: dict[str, Any]  # plan.json: {"cells": [{"name": ..., "overrides": {...}}, ...], "command": [...], ...}
    cells: dict[str, Run]
    ledger: dict[str, dict[str, Any]]  # cell -> {"cell": NAME, "status": ..., ...}

    def status(self, cell: str) -> str:
        """How a cell stands: what its own manifest says, but a failure the ledger knows of comes first."""
        known = str(self.ledger.get(cell, {}).get("status", ""))
        return known if known == "failed" or not self.cells[cell].manifest else self.cells[cell].status


def read(workdir: pathlib.Path) -> Run | Sweep:
    """Read a run or sweep folder. ConfigError if `workdir` is neither or holds a file that is not JSON."""
    if not workdir.is_dir():
        raise ConfigError(f"workdir: {str(workdir)!r} is not a folder; allowed: a run folder or a sweep folder.")
    if (workdir / "plan.json").is_file():
        return _sweep(workdir)
    if not any((workdir / name).is_file() for name in ("config.json", "manifest.json", "summary.json")):
        raise ConfigError(
            f"workdir: {str(workdir)!r} holds no run; allowed: a run folder (with config.json) or a sweep folder"
            " (with plan.json)."
        )
    return _run(workdir)


def _run(path: pathlib.Path) -> Run:
    return Run(
        path=path,
        config=_json(path / "config.json"),
        manifest=_json(path / "manifest.json"),
        metrics=_lines(path / "metrics.jsonl"),
        summary=_json(path / "summary.json"),
    )


def _sweep(path: pathlib.Path) -> Sweep:
    plan = _json(path / "plan.json")
    planned = [str(cell["name"]) for cell in plan.get("cells", [])]
    cells = path / "cells"
    found = sorted(p.name for p in cells.iterdir() if p.is_dir()) if cells.is_dir() else []
    names = [*planned, *(name for name in found if name not in planned)]
    ledger = {str(line["cell"]): line for line in _lines(path / "ledger.jsonl") if "cell" in line}
    return Sweep(path=path, plan=plan, cells={name: _run(cells / name) for name in names}, ledger=ledger)


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"workdir: {str(path)!r} cannot be read; allowed: a JSON object.")
    return value


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may be written to right now; a broken one is left out."""
    return [line for _, line in read_lines(path) if line is not None]
