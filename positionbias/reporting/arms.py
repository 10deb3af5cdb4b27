"""Arms side by side: the cells of a sweep, or the combinations of hyperparameters that a run's replicas have.

A reader is told of cells, combinations and curves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from positionbias.config.varied import label as combination
from positionbias.config.varied import replicas_told
from positionbias.evaluation.statistics import INDICES, Interval, paired_difference
from positionbias.evaluation.table import EVEN, even_attention, even_shares, solved_count, when
from positionbias.reporting import comparisons
from positionbias.reporting.figures import MOST_ARMS, Arm
from positionbias.reporting.folder import Run
from positionbias.reporting.html import between, escape, figure, grid, number
from positionbias.reporting.told import ASKS, band, ceiling_told, indices, label, loss_told

MOST_PANELS = 60  # of a figure with one an arm: a page can hold more, but each takes longer to draw than the one before
Arms = Mapping[str, Run]  # by their names, each with a summary
Link = Callable[[str, Run], str] | None  # the name of an arm, as HTML that leads to its report; None: there is none


def arms_of(name: str, run: Run) -> dict[str, Run]:
    """The run as an arm, or where its replicas differ in more than seeds an arm for each combination."""
    found = run.summary.get("combinations")
    if not found:
        return {name: run}
    before = [name] if name else []
    return {": ".join([*before, combination(one["values"])]): dataclasses.replace(run, summary=one) for one in found}


def verdict(measured: Arms) -> str:
    """One sentence: the mean accuracy of the best arms."""
    ranked = sorted(measured, key=lambda name: -(measured[name].summary["accuracy"]["mean"] or 0))
    parts = [f"{name}{mark(measured[name])} {between(measured[name].summary['accuracy'])}" for name in ranked[:6]]
    more = f" and {len(ranked) - 6} more below" if len(ranked) > 6 else ""
    return f"Mean accuracy, highest first: {'; '.join(parts)}{more}."


def curves(measured: Arms) -> list[str]:
    """Accuracy by position, a curve an arm."""
    shown, found = dict(list(measured.items())[:MOST_ARMS]), []
    for axis in ("query", "evidence"):
        what = _axis(shown, axis)
        compared = [Arm(name, run.summary[f"by_{axis}_position"], mark(run)) for name, run in shown.items()]
        told = f"Accuracy by {what}. Thin and dashed in a curve's colour: its own ceiling. {_hidden(compared)}"
        found.append(figure(comparisons.arms(f"arms-{axis}", what, compared), told + _bands(shown)))
    return found


def _hidden(compared: Sequence[Arm]) -> str:
    """Which curves are one line, and how each is seen in it."""
    groups = [group for group in comparisons.coinciding([arm.rows for arm in compared]) if len(group) > 1]
    told = "; ".join(" and ".join(compared[i].label + compared[i].mark for i in group) for group in groups)
    return f"On one line, in dashes that take turns: {told}. " if told else ""


def tables(measured: Arms, link: Link) -> list[str]:
    """Accuracy and what it is held against, and the indices of position bias, a line an arm."""
    first, named, one = next(iter(measured)), link or _plain, "combination" if link is None else "cell"
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
        body.append([named(name, run), between(accuracy), gap, ceiling, simple, part, *loss, size])
    more = ["loss"] if judged else []
    head = [one, "accuracy", "minus first", "ceiling", "order-free", "solved", *more, "state size"]
    caption = (
        f"Mean and 95 % interval over replicas. Minus first: accuracy minus that of {first}{mark(measured[first])},"
        " paired by replica. State size: the numbers that all layers keep to go on with a sequence, keys and values or"
        " states."
    )
    caption += " Each name leads to its own report." if link else ""
    parts = [grid(head, body, caption, raw=1)]
    for axis in ("query", "evidence"):
        rows = [
            [named(name, run), *(between(run.summary["indices"][f"{axis}_position"][i], True) for i in INDICES)]
            for name, run in measured.items()
        ]
        caption = f"Indices of accuracy by {_axis(measured, axis)}."
        parts.append(indices([one, *(i.replace("_", " ") for i in INDICES)], rows, caption, raw=1))
    return parts


def influence(measured: Arms, link: Link) -> list[str]:
    """What the arms' answers depend on, by input position."""
    shown, named = {name: run for name, run in measured.items() if run.summary["influence"]}, link or _plain
    if not shown:
        return []
    first = list(shown.items())[:MOST_PANELS]
    compared = [Arm(name, run.summary["influence"], mark(run)) for name, run in first]
    before = {name: run.summary["at_init"].get("influence", []) for name, run in first if run.summary["steps"] != 0}
    even = {name: alone for name, run in first if (alone := even_attention(run.summary))}
    svg = comparisons.influences("arms-influence", compared, before, even)
    told = "Blue: as measured; light blue: before training" if before else "Blue: before training, as models are drawn"
    told += f"; dotted: {EVEN}" if even else ""
    caption = (
        "How much each input position moves the state at the query that gives each item's last answer: mean squared"
        " gradient, in shares of which each position has one if all matter alike (dashed). Below a thousandth nothing"
        f" is drawn. {told}. {ASKS} {_bands(shown)}"
        f"{f' Of {len(shown)} the first {len(first)} are drawn.' if len(first) < len(shown) else ''}"
    )
    body = [
        [named(name, run), *(between(even_shares(run.summary, i), True) for i in INDICES)]
        for name, run in shown.items()
    ]
    head = ["combination" if link is None else "cell", *(i.replace("_", " ") for i in INDICES)]
    table = indices(head, body, "Indices of the influence, in the same shares.", raw=1)
    return ["<h2>Influence by input position</h2>", figure(svg, caption), table]


def _plain(name: str, run: Run) -> str:
    return escape(name + mark(run))


def mark(run: Run) -> str:
    """` (replicas 0, 1)` of a combination, and ` (at step N of M)` where it was measured before training had ended."""
    steps, of, members = run.summary["steps"], run.summary["of"], run.summary.get("members")
    told = f" ({replicas_told(members)})" if members else ""
    return told + (f" ({when(run.summary)})" if None not in (steps, of) and steps < of else "")


def _bands(shown: Arms) -> str:
    counts = sorted({len(run.summary["accuracy"]["replicas"]) for run in shown.values()})
    return band(counts[0]) if len(counts) == 1 else f"Bands: 95 % Student t over {counts[0]} to {counts[-1]} replicas."


def _axis(measured: Arms, axis: str) -> str:
    """What the slots of an axis count, in each of the tasks, which may differ."""
    return " / ".join(dict.fromkeys(label(run.summary, axis) for run in measured.values()))


def _against(values: list[float | None], first: list[float | None]) -> str:
    if len(values) != len(first):
        return "not paired"
    found: Interval = paired_difference(values, first)
    return between(found.to_dict(), True)
