"""What a report reads of a run folder or a sweep folder. Anything may be missing: a run can stop at any moment."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from positionbias.evaluation import stored
from positionbias.files import read_lines
from positionbias.spec import ConfigError
from positionbias.training.writers import read_metrics

# What a report relies on; whatever else is there is shown as it is.
CONFIG = {"config?": dict, "command?": [str]}
MANIFEST = {"status?": str, "step?": int, "message?": str, "hash?": str}
PLAN = {"cells?": [{"name": str, "hash?": str, "overrides?": dict, "curve?": (str, None)}], "command?": [str]}
DAMAGED = "damaged"  # the status of a cell of which nothing is shown


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder; a file that is not there is an empty mapping or list."""

    path: pathlib.Path
    config: dict[str, Any]  # config.json: {"config": {...}, "hash": ..., "command": [...]}
    manifest: dict[str, Any]  # manifest.json: {"status": ..., "step": ..., "commit": ..., ...}
    metrics: list[dict[str, Any]]  # metrics.jsonl: {"step", "seconds", "loss": [R], "accuracy": [R]} a line
    summary: dict[str, Any]  # summary.json
    again: dict[str, dict[str, Any]]  # evals/LABEL.json, what `positionbias.evaluate` measured, by label
    analyses: dict[str, dict[str, Any]]  # analysis/LABEL.json, what `positionbias.analyze` found, by label
    damage: str = ""  # of a cell of a sweep: why nothing above was taken from its folder

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
        """How a cell stands: what its own manifest says, but unless it is finished the ledger's failure comes first.

        Without a manifest it has not finished, whatever the ledger says: its folder was deleted to run it again.
        """
        known, run = str(self.ledger.get(cell, {}).get("status", "")), self.cells[cell]
        if run.damage and known != "failed":
            return DAMAGED
        if run.manifest:
            return known if known == "failed" and run.status != "finished" else run.status
        return "" if known == "finished" else known


def read(workdir: pathlib.Path) -> Run | Sweep:
    """Read a run or sweep folder. ConfigError if `workdir` is neither, or damaged (cells of a sweep aside)."""
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
        config=stored.read(path / "config.json", CONFIG),
        manifest=stored.read(path / "manifest.json", MANIFEST),
        metrics=read_metrics(path / "metrics.jsonl"),
        summary=stored.read_summary(path / "summary.json"),
        again=stored.read_again(path),
        analyses=stored.read_analyses(path),
    )


def _cell(path: pathlib.Path, planned: str | None) -> Run:
    """The run of a cell whose config has the hash `planned`. One that is damaged, or another's, hides no other cell."""
    try:
        run = _run(path)
    except ConfigError as error:
        damage = str(error)
    else:
        there = run.manifest.get("hash")
        if None in (planned, there) or there == planned:
            return run
        damage = f"its folder holds a run of another config, {there}"
    return Run(path, config={}, manifest={}, metrics=[], summary={}, again={}, analyses={}, damage=damage)


def cells_of(path: pathlib.Path, plan: dict[str, Any]) -> list[str]:
    """The cells of a sweep: those planned, then others that have a folder. ConfigError for names that are none."""
    planned = [cell["name"] for cell in plan.get("cells", [])]
    astray = next((name for name in planned if name in ("", "..") or pathlib.PurePath(name).name != name), None)
    if astray is not None:
        raise ConfigError(f"workdir: {str(path / 'plan.json')!r} has a cell {astray!r}; allowed: names of folders.")
    cells = path / "cells"
    found = sorted(p.name for p in cells.iterdir() if p.is_dir()) if cells.is_dir() else []
    known = set(planned)
    return [*planned, *(name for name in found if name not in known)]


def read_plan(path: pathlib.Path) -> dict[str, Any]:
    """`plan.json` of a sweep folder. ConfigError if it is damaged."""
    return stored.read(path / "plan.json", PLAN)


def _sweep(path: pathlib.Path) -> Sweep:
    plan = read_plan(path)
    # It may be written to right now: a broken line is left out.
    ledger = {str(line["cell"]): line for _, line in read_lines(path / "ledger.jsonl") if line and "cell" in line}
    hashes = {cell["name"]: cell.get("hash") for cell in plan.get("cells", [])}
    runs = {name: _cell(path / "cells" / name, hashes.get(name)) for name in cells_of(path, plan)}
    return Sweep(path=path, plan=plan, cells=runs, ledger=ledger)
