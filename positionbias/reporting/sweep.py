"""The report of a sweep: its arms side by side."""

from __future__ import annotations

import shlex
import urllib.parse
from collections.abc import Mapping
from typing import Any

from positionbias.evaluation.statistics import INDICES, Interval, paired_difference
from positionbias.evaluation.table import even_shares, remarks, solved_count, untrained, when
from positionbias.reporting import figures
from positionbias.reporting.folder import Run, Sweep
from positionbias.reporting.html import between, escape, figure, grid, note, number, page, pairs
from positionbias.reporting.html import figures as side_by_side
from positionbias.reporting.told import COLLINEAR, band, ceiling_told, label, loss_told

MOST_ARMS = 14  # curves one figure can hold and still be read
MOST_PANELS = 60  # of a figure with one an arm: a page can hold more, but each takes longer to draw than the one before


def sweep_page(sweep: Sweep) -> str:
    """The whole document for a sweep, whatever part of it is done."""
    measured = {name: run for name, run in sweep.cells.items() if run.summary and not _initial(run)}
    trained = any(not untrained(run.summary) for run in measured.values())  # else accuracy says nothing
    title = str(sweep.plan.get("name") or next((r.settings.get("name") for r in measured.values()), sweep.path.name))
    finished = sum(sweep.status(name) == "finished" for name in sweep.cells)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="under">sweep · {finished} of {len(sweep.cells)} cells finished</p>',
        f'<p class="verdict">{escape(_verdict(measured))}</p>' if trained else "",
        *(note(text) for text in _notes(sweep, measured, trained)),
    ]
    if trained:
        body += ["<h2>Arms side by side</h2>", side_by_side(_figures(sweep, measured))]
        body += ["<h2>Numbers</h2>", *_tables(measured)]
    body += _influence(measured)
    body += _unfinished(sweep, measured)
    body += ["<h2>Plan</h2>", _plan(sweep)]
    return page(f"{title}: sweep", body)


def _initial(run: Run) -> bool:
    """Whether only the evaluation at initialisation is there, which says nothing of the training that is to come."""
    return run.summary.get("steps") == 0 and not untrained(run.summary)


def _mark(run: Run) -> str:
    """` (at step N of M)` where a cell was measured before its training had ended."""
    steps, of = run.summary["steps"], run.summary["of"]
    return f" ({when(run.summary)})" if None not in (steps, of) and steps < of else ""


def _verdict(measured: Mapping[str, Run]) -> str:
    ranked = sorted(measured, key=lambda name: -(measured[name].summary["accuracy"]["mean"] or 0))
    parts = [f"{name}{_mark(measured[name])} {between(measured[name].summary['accuracy'])}" for name in ranked[:6]]
    more = f" and {len(ranked) - 6} more below" if len(ranked) > 6 else ""
    return f"Mean accuracy, highest first: {'; '.join(parts)}{more}."


def _notes(sweep: Sweep, measured: Mapping[str, Run], trained: bool) -> list[str]:
    notes = []
    failed = [name for name in sweep.cells if sweep.status(name) == "failed"]
    if failed:
        notes.append(f"{len(failed)} of {len(sweep.cells)} cells failed: {', '.join(failed)}.")
    if not measured:
        but = " but at initialisation" if any(_initial(run) for run in sweep.cells.values()) else ""
        notes.append(f"No cell has been evaluated yet{but}, so there is nothing to compare.")
    if measured and not trained:
        return [*notes, "Nothing here was trained: models are measured as they are drawn."]
    if len(measured) > MOST_ARMS:
        notes.append(f"The figures show the first {MOST_ARMS} arms; the table has all {len(measured)}.")
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


def _by_state_size(sweep: Sweep, measured: Mapping[str, Run]) -> list[str]:
    """Accuracy over the size of the state, where cells are told to be curves."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for cell in sweep.plan.get("cells", []):
        run, curve = measured.get(cell["name"]), cell.get("curve")
        if run is not None and curve is not None and run.summary.get("state_size"):
            curves.setdefault(curve, []).append({**run.summary["accuracy"], "position": run.summary["state_size"]})
    if not curves:
        return []
    ordered = {curve: sorted(rows, key=lambda row: row["position"]) for curve, rows in curves.items()}
    caption = (
        "Mean accuracy over the numbers that all layers keep to go on with a sequence: keys and values that can still"
        " be seen, states, the inputs of convolutions. Upright lines: 95 % Student t over replicas."
    )
    return [figure(figures.by_state_size("state-size", ordered), caption)]


def _figures(sweep: Sweep, measured: Mapping[str, Run]) -> list[str]:
    shown = dict(list(measured.items())[:MOST_ARMS])
    found = _by_state_size(sweep, measured)
    for axis in ("query", "evidence"):
        what = _axis(shown, axis)
        compared = [figures.Arm(name, run.summary[f"by_{axis}_position"], _mark(run)) for name, run in shown.items()]
        svg = figures.arms(f"arms-{axis}", what, compared)
        found.append(figure(svg, f"Accuracy by {what}. Dashed in an arm's colour: its own ceiling. {_bands(shown)}"))
    return found


def _tables(measured: Mapping[str, Run]) -> list[str]:
    first = next(iter(measured))
    judged = any("loss" in run.summary for run in measured.values())
    body = []
    for name, run in measured.items():
        accuracy = run.summary["accuracy"]
        part = solved_count(run.summary) or "–"
        loss = [loss_told(run.summary) if "loss" in run.summary else "–"] if judged else []
        gap = "" if name == first else _against(accuracy["replicas"], measured[first].summary["accuracy"]["replicas"])
        ceiling = ceiling_told(run.summary["ceiling"]["mean"], run.summary["ceiling"]["known"])
        simple = number(run.summary["baselines"]["order_free"])
        kept = run.summary.get("state_size")
        size = f"{kept:,}" if kept is not None else "–"
        body.append([_link(name, run), between(accuracy), gap, ceiling, simple, part, *loss, size])
    more = ["loss"] if judged else []
    head = ["arm", "accuracy", f"minus {first}", "ceiling", "order-free", "solved", *more, "numbers kept"]
    caption = (
        "Mean and 95 % interval over replicas; differences are paired by replica. Each name leads to its own report."
    )
    parts = [grid(head, body, caption, raw=1)]
    for axis in ("query", "evidence"):
        rows = [
            [_link(name, run), *(between(run.summary["indices"][f"{axis}_position"][i], True) for i in INDICES)]
            for name, run in measured.items()
        ]
        caption = f"Indices of accuracy by {_axis(measured, axis)}."
        parts.append(grid(["arm", *(i.replace("_", " ") for i in INDICES)], rows, caption, raw=1))
    return parts


def _influence(measured: Mapping[str, Run]) -> list[str]:
    """What the arms' answers depend on, by input position."""
    shown = {name: run for name, run in measured.items() if run.summary["influence"]}
    if not shown:
        return []
    drawn = list(shown.items())[:MOST_PANELS]
    compared = [figures.Arm(name, run.summary["influence"], _mark(run)) for name, run in drawn]
    before = {name: run.summary["at_init"].get("influence", []) for name, run in drawn if run.summary["steps"] != 0}
    svg = figures.influences("arms-influence", compared, before)
    told = "Blue: as measured; light blue: before training" if before else "Blue: before training, as models are drawn"
    caption = (
        "How much each input position moves the state at the query that gives each item's last answer: mean squared"
        " gradient, in shares of which each position has one if all matter alike (dashed). Below a thousandth nothing"
        f" is drawn. {told}. {_bands(shown)}"
        f"{f' Of {len(shown)} arms the first {len(drawn)}.' if len(drawn) < len(shown) else ''}"
    )
    body = [
        [_link(name, run), *(between(even_shares(run.summary, i), True) for i in INDICES)]
        for name, run in shown.items()
    ]
    table = grid(
        ["arm", *(i.replace("_", " ") for i in INDICES)],
        body,
        "Indices of the influence, in the same shares. Mean and 95 % interval over replicas.",
        raw=1,
    )
    return ["<h2>Influence by input position</h2>", figure(svg, caption), table]


def _bands(shown: Mapping[str, Run]) -> str:
    counts = sorted({len(run.summary["accuracy"]["replicas"]) for run in shown.values()})
    return band(counts[0]) if len(counts) == 1 else f"Bands: 95 % Student t over {counts[0]} to {counts[-1]} replicas."


def _axis(measured: Mapping[str, Run], axis: str) -> str:
    """What the slots of an axis count, in each of the tasks, which may differ."""
    return " / ".join(dict.fromkeys(label(run.summary, axis) for run in measured.values()))


def _against(values: list[float | None], first: list[float | None]) -> str:
    if len(values) != len(first):
        return "not paired"
    found: Interval = paired_difference(values, first)
    return between(found.to_dict(), True)


def _link(name: str, run: Run) -> str:
    return f'<a href="cells/{escape(urllib.parse.quote(name))}/report.html">{escape(name)}</a>{_mark(run)}'


def _unfinished(sweep: Sweep, measured: Mapping[str, Run]) -> list[str]:
    body = []
    for name, run in sweep.cells.items():
        if sweep.status(name) == "finished" and name in measured:
            continue
        line = sweep.ledger.get(name, {})
        told = [str(line.get("message") or run.manifest.get("message", ""))]
        told += ["only the evaluation at initialisation is there"] if _initial(run) else []
        status = sweep.status(name) or "not started"
        body.append([name, status, line.get("code", "–"), "; ".join(part for part in told if part)])
    if not body:
        return []
    return [
        "<h2>Cells without a result, or not finished</h2>",
        grid(["cell", "status", "exit code", "message"], body, texts=4),
    ]


def _plan(sweep: Sweep) -> str:
    command = f"<pre>{escape(shlex.join(map(str, sweep.plan['command'])))}</pre>" if "command" in sweep.plan else ""
    top = {key: value for key, value in sweep.plan.items() if key not in ("cells", "command")}
    body = [
        [cell["name"], "; ".join(f"{field} = {value}" for field, value in cell.get("overrides", {}).items())]
        for cell in sweep.plan.get("cells", [])
    ]
    return command + pairs(top) + (grid(["cell", "settings"], body, texts=2) if body else "")
