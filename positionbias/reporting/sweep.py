"""The report of a sweep: its cells side by side."""

from __future__ import annotations

import shlex
import urllib.parse
from collections.abc import Mapping
from typing import Any

from positionbias.evaluation.table import remarks, untrained
from positionbias.reporting import arms, comparisons
from positionbias.reporting.arms import arms_of, mark
from positionbias.reporting.figures import MOST_ARMS
from positionbias.reporting.folder import DAMAGED, Run, Sweep
from positionbias.reporting.html import escape, figure, grid, note, page, pairs
from positionbias.reporting.html import figures as side_by_side
from positionbias.reporting.told import COLLINEAR

MOST_NAMED = 6  # cells that are named of those that have not begun: of a part of a sweep these are nearly all


def sweep_page(sweep: Sweep) -> str:
    """The whole document for a sweep, whatever part of it is done."""
    cells = {name: run for name, run in sweep.cells.items() if run.summary and not _initial(run)}
    measured = {arm: run for name, cell in cells.items() for arm, run in arms_of(name, cell).items()}
    trained = any(not untrained(run.summary) for run in measured.values())  # else accuracy says nothing
    title = str(sweep.plan.get("name") or next((r.settings.get("name") for r in measured.values()), sweep.path.name))
    finished = sum(sweep.status(name) == "finished" for name in sweep.cells)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="under">sweep · {finished} of {len(sweep.cells)} cells finished</p>',
        f'<p class="verdict">{escape(arms.verdict(measured))}</p>' if trained else "",
        *(note(text) for text in _notes(sweep, measured, trained)),
    ]
    if trained:
        body += ["<h2>Cells side by side</h2>", side_by_side([*_by_state_size(sweep, cells), *arms.curves(measured)])]
        body += ["<h2>Numbers</h2>", *arms.tables(measured, _link)]
    body += arms.influence(measured, _link)
    body += _unfinished(sweep, cells)
    body += ["<h2>Plan</h2>", _plan(sweep)]
    return page(f"{title}: sweep", body)


def _initial(run: Run) -> bool:
    """Whether only the evaluation at initialisation is there, which says nothing of the training that is to come."""
    return run.summary.get("steps") == 0 and not untrained(run.summary)


def _begun(sweep: Sweep, name: str) -> bool:
    """Whether there is anything to tell of a cell, by the ledger or in its folder."""
    return bool(sweep.status(name) or sweep.cells[name].summary)


def _notes(sweep: Sweep, measured: Mapping[str, Run], trained: bool) -> list[str]:
    notes = []
    for status, told in (("failed", "failed"), (DAMAGED, "left out as damaged")):
        names = [name for name in sweep.cells if sweep.status(name) == status]
        if names:
            notes.append(f"{len(names)} of {len(sweep.cells)} cells {told}: {', '.join(names)}.")
    if names := [name for name in sweep.cells if not _begun(sweep, name)]:
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        notes.append(f"{len(names)} of {len(sweep.cells)} cells not run yet: {', '.join(names[:MOST_NAMED])}{more}.")
    if not measured:
        but = " but at initialisation" if any(_initial(run) for run in sweep.cells.values()) else ""
        notes.append(f"No cell has been evaluated yet{but}, so there is nothing to compare.")
    if measured and not trained:
        return [*notes, "Nothing here was trained: models are measured as they are drawn."]
    if len(measured) > MOST_ARMS:
        notes.append(f"The figures show the first {MOST_ARMS} curves; the table has all {len(measured)}.")
    for name, run in measured.items():
        notes += [f"{name}: {line}." for line in remarks(run.summary)]
        if run.summary.get("note"):
            notes.append(f"{name}: {run.summary['note']}")
    open_ = [name for name, run in measured.items() if run.summary["accuracy"]["verdict"] == "undecided"]
    if open_:
        notes.append(
            f"Undecided, because some but not all of fewer than 8 replicas solved the task: {', '.join(open_)}."
        )
    if any(run.summary.get("collinear") for run in measured.values()):
        notes.append(COLLINEAR)
    return notes


def _by_state_size(sweep: Sweep, cells: Mapping[str, Run]) -> list[str]:
    """Accuracy over the size of the state, where cells are told to be curves."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for cell in sweep.plan.get("cells", []):
        run, curve = cells.get(cell["name"]), cell.get("curve")
        if run is not None and curve is not None and run.summary.get("state_size"):
            for name, arm in arms_of(curve, run).items():
                point = {**arm.summary["accuracy"], "position": run.summary["state_size"]}
                curves.setdefault(name, []).append(point)
    if not curves:
        return []
    ordered = {curve: sorted(rows, key=lambda row: row["position"]) for curve, rows in curves.items()}
    caption = (
        "Mean accuracy over the state size, the numbers that all layers keep to go on with a sequence: keys and values"
        " that can still be seen, states, the inputs of convolutions. Upright lines: 95 % Student t over replicas."
    )
    return [figure(comparisons.by_state_size("state-size", ordered), caption)]


def _link(name: str, run: Run) -> str:
    return f'<a href="cells/{escape(urllib.parse.quote(run.path.name))}/report.html">{escape(name)}</a>{mark(run)}'


def _unfinished(sweep: Sweep, cells: Mapping[str, Run]) -> list[str]:
    body = []
    for name, run in sweep.cells.items():
        if (sweep.status(name) == "finished" and name in cells) or not _begun(sweep, name):
            continue
        status, line = sweep.status(name), sweep.ledger.get(name, {})
        if line.get("status") != status:  # of an earlier try, whose folder was deleted
            line = {}
        told = [str(line.get("message") or run.damage or run.manifest.get("message", ""))]
        told += ["only the evaluation at initialisation is there"] if _initial(run) else []
        body.append([name, status or "not started", line.get("code", "–"), "; ".join(part for part in told if part)])
    if not body:
        return []
    return [
        "<h2>Cells without a result, or not finished</h2>",
        grid(["cell", "status", "exit code", "message"], body, texts=4),
    ]


def _plan(sweep: Sweep) -> str:
    command = f"<pre>{escape(shlex.join(map(str, sweep.plan['command'])))}</pre>" if "command" in sweep.plan else ""
    top = {key: value for key, value in sweep.plan.items() if key not in ("cells", "command")}
    begun, left = list[list[str]](), list[list[str]]()
    for cell in sweep.plan.get("cells", []):
        settings = "; ".join(f"{field} = {value}" for field, value in cell.get("overrides", {}).items())
        (begun if _begun(sweep, cell["name"]) else left).append([cell["name"], settings])
    parts = [command, pairs(top), grid(["cell", "settings"], begun, texts=2) if begun else ""]
    if left:
        told = grid(["cell", "settings"], left, texts=2)
        parts.append(f"<details><summary>Cells not run yet: {len(left)}</summary>{told}</details>")
    return "".join(parts)
