"""The report of one run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from positionbias.config.varied import label as combination
from positionbias.config.varied import replicas_told
from positionbias.evaluation.statistics import INDICES
from positionbias.evaluation.table import (
    EVEN,
    axes_told,
    even_attention,
    gaps_told,
    held_against,
    remarks,
    rules_told,
    solved_count,
    spelt,
    untrained,
    when,
)
from positionbias.reporting import arms, figures
from positionbias.reporting.again import evaluated_again
from positionbias.reporting.analyses import analysed
from positionbias.reporting.folder import Run
from positionbias.reporting.html import between, escape, figure, grid, note, number, page, pairs
from positionbias.reporting.html import figures as side_by_side
from positionbias.reporting.told import (
    ASKS,
    COLLINEAR,
    band,
    ceiling_told,
    indices,
    label,
    loss_told,
    replicas_text,
    shortened,
)

AT_INIT = "light blue: before training"
UNFINISHED = {
    "running": "is still running, or was killed",
    "stopped": "was stopped",
    "failed": "failed",
    "not started": "has not started",
}


def run_page(run: Run) -> str:
    """The whole document for one run, finished or not."""
    summary = run.summary
    body = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="under">{escape(_under(run))}</p>',
        f'<p class="verdict">{escape(_verdict(run))}</p>' if summary else "",
        *(note(text) for text in _notes(run)),
    ]
    if summary and summary.get("combinations"):
        body += _combinations(run)
    elif summary:
        body += ["<h2>Measured by position</h2>", side_by_side(_figures(summary))]
        body += ["<h2>Indices</h2>", _indices(summary), *_conditions(summary), *_orders(summary)]
        body += [*_theory(summary), _rows(summary)]
    body += [*evaluated_again(run), *analysed(run), *_training(run), *_config(run), *_manifest(run)]
    return page(f"{run.name}: position bias", body)


def _verdict(run: Run) -> str:
    return arms.verdict(arms.arms_of("", run)) if run.summary.get("combinations") else verdict(run.summary)


def _combinations(run: Run) -> list[str]:
    """What is measured of replicas that differ in hyperparameters: each combination, side by side."""
    found = arms.arms_of("", run)
    body = [] if untrained(run.summary) else ["<h2>Measured by position</h2>", side_by_side(arms.curves(found))]
    body += ["<h2>Numbers</h2>", *arms.tables(found, None)] if body else []
    body += arms.influence(found, None)
    for name, one in found.items():
        if len(one.summary["by_condition"]) > 1 or one.summary["order_gap"]:
            parts = [*_conditions(one.summary), *_orders(one.summary)]
            body += [f"<h2>{escape(name + arms.mark(one))}</h2>", *(part.replace("h2>", "h3>") for part in parts)]
    return body


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence: mean accuracy with its interval, ceiling, baselines and the replicas that solved the task."""
    accuracy = summary["accuracy"]
    count = len(accuracy["replicas"])
    text = f"Mean accuracy {between(accuracy)} over {replicas_text(count)}"
    ceiling = summary["ceiling"]["mean"]
    if ceiling is not None:
        text += f", against a ceiling of {number(ceiling)}"
        text += " where it is known" if summary["ceiling"]["known"] < 1 else ""
    beside = [f"{spelt(name)} {number(value)}" for name, value in summary["baselines"].items()]
    text += f" (simple rules: {', '.join(beside)})" if beside else ""
    if accuracy["solved"] is not None:
        text += f"; {solved_count(summary)} solved the task"
    if "loss" in summary:
        text += f"; mean loss {loss_told(summary)}"
    return text + (": undecided with so few." if accuracy["verdict"] == "undecided" else ".")


def _under(run: Run) -> str:
    parts = [shortened(str(run.settings["task"]))] if "task" in run.settings else []
    parts.append(run.status)
    step = run.summary.get("steps") if run.summary else None
    if run.manifest.get("step") is not None:
        parts.append(f"step {run.manifest['step']}")
    if step is not None:
        parts.append(f"evaluated {when(run.summary)}")
    if run.summary and run.summary.get("state_size") is not None:
        parts.append(f"state size {run.summary['state_size']:,}")
    return " · ".join(parts)


def _notes(run: Run) -> list[str]:
    summary, notes = run.summary, []
    if run.status != "finished":
        message = str(run.manifest.get("message") or "")
        told = f"This run {UNFINISHED.get(run.status, f'is {run.status}')}{f' ({message})' if message else ''}"
        notes.append(f"{told}: what follows is what it has left so far.")
    if not summary:
        notes.append("There is no evaluation yet, so nothing can be said about positions.")
        return notes
    if untrained(summary):
        notes.append("This run has no training: all of it is measured on models as they are drawn.")
        return notes
    if summary.get("steps") == 0:
        notes.append("The only evaluation so far is the one before training.")
    notes += [f"{line[0].upper()}{line[1:]}." for line in remarks(summary)]
    if summary.get("note"):
        notes.append(summary["note"])
    if len(summary["accuracy"]["replicas"]) == 1:
        notes.append("A single replica has no interval: train at least two to see what is chance.")
    if summary["accuracy"]["verdict"] == "undecided":
        notes.append("Some but not all replicas solved the task; fewer than 8 leave the verdict undecided.")
    if summary.get("collinear"):
        notes.append(COLLINEAR)
    return notes


# ---------------------------------------------------------------------------------------------------------- figures


def _figures(summary: Mapping[str, Any]) -> list[str]:
    axes = axes_told(summary)
    shown = [_losses(summary, axis) for axis in axes] if "loss" in summary else []
    shown += [_accuracy(summary, axis) for axis in axes]
    if len(summary["by_distance"]) > 1 or len(axes) > 1:
        shown.append(_distance(summary))
    return [one for one in (*shown, _influence(summary)) if one]


def _losses(summary: Mapping[str, Any], axis: str) -> str:
    what, rules = label(summary, axis), summary["loss"]["rules"]
    at_init = _at_init(summary, f"by_{axis}_position")
    rows, first = (
        [{**row["loss"], "position": row["position"]} for row in curve if "loss" in row]
        for curve in (summary[f"by_{axis}_position"], at_init)
    )
    svg = figures.losses(f"loss-{axis}", what, rows, first, rules, _when(summary))
    seen = [f"Blue: loss {_when(summary)}"]
    if any(row["floor"] is not None for row in rows):
        seen.append("dashed: the least that an ideal observer of the visible input expects")
    if rules:
        seen.append(f"dotted: the mean of simple rules ({', '.join(f'{k} {number(v)}' for k, v in rules.items())})")
    seen += [AT_INIT] if first else []
    return figure(svg, f"Loss by {what}. {'; '.join(seen)}. {band(len(summary['accuracy']['replicas']))}")


def _training(run: Run) -> list[str]:
    if not any(line.get("loss") is not None for line in run.metrics):
        return []
    found = run.summary.get("combinations", []) if run.summary else []
    groups = [
        (figures.Arm(combination(one["values"]), (), f" ({replicas_told(one['members'])})"), one["members"])
        for one in found
    ]
    told = "Training loss, one line a replica" + (", in the colour of its combination." if found else ".")
    return ["<h2>Training</h2>", side_by_side([figure(figures.loss("loss", run.metrics, groups), told)])]


def _accuracy(summary: Mapping[str, Any], axis: str) -> str:
    rows = summary[f"by_{axis}_position"]
    at_init = _at_init(summary, f"by_{axis}_position")
    theory = summary.get("theory", {}).get(axis)
    what = label(summary, axis)
    svg = figures.accuracy(axis, what, rows, at_init, theory, _when(summary))
    seen = [f"Blue: accuracy {_when(summary)}", *_beside(rows)]
    seen += ["yellow: the closed form"] if theory else []
    seen += [AT_INIT] if at_init else []
    return figure(svg, f"Accuracy by {what}. {'; '.join(seen)}. {band(len(summary['accuracy']['replicas']))}")


def _at_init(summary: Mapping[str, Any], measure: str) -> list[Any]:
    """The curve before training, but where there is no other."""
    return summary["at_init"].get(measure, []) if summary.get("steps") != 0 else []


def _when(summary: Mapping[str, Any]) -> str:
    """At which point of training the measures were taken."""
    steps = summary.get("steps")
    if steps == 0:
        return "before training"
    return "after training" if steps is None or steps == summary.get("of", steps) else f"at step {steps}"


def _beside(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    named = {"ceiling": "dashed: what an ideal observer of the visible input reaches", "baseline": "dotted: guessing"
             " without regard to order"}  # fmt: skip
    if any(row["ceiling_known"] < 1 for row in rows):
        named["ceiling"] += ", over the answers of which that is known"
    return [text for key, text in named.items() if any(row[key] is not None for row in rows)]


def _distance(summary: Mapping[str, Any]) -> str:
    rows = summary["by_distance"]
    at_init = _at_init(summary, "by_distance")
    svg = figures.accuracy("distance", "distance from query back to evidence", rows, at_init, when=_when(summary))
    ahead = " Below zero the evidence comes after the query." if rows[0]["position"] < 0 else ""
    seen = [f"Blue: accuracy {_when(summary)}", *_beside(rows), *([AT_INIT] if at_init else [])]
    bands = band(len(summary["accuracy"]["replicas"]))
    return figure(svg, f"Accuracy by distance.{ahead} {'; '.join(seen)}. {bands}")


def _influence(summary: Mapping[str, Any]) -> str:
    at_init = _at_init(summary, "influence")
    if not summary["influence"] and not at_init:
        return ""
    even = even_attention(summary)
    svg = figures.influence("influence", summary["influence"], at_init, _when(summary), even)
    seen = [f"Blue: {_when(summary)}", *([AT_INIT] if at_init else []), *([f"dotted: {EVEN}"] if even else [])]
    caption = (
        "How much each input position moves the state at the query that gives each item's last answer, and at no other:"
        f" mean squared gradient, normalised to sum to 1. {'; '.join(seen)}."
        f" {ASKS} {band(len(summary['accuracy']['replicas']))}"
    )
    return figure(svg, caption)


# ----------------------------------------------------------------------------------------------------------- tables


def _indices(summary: Mapping[str, Any]) -> str:
    body = []
    for name, found in summary["indices"].items():
        along = {"query_position": label(summary, "query"), "evidence_position": label(summary, "evidence")}
        axis = along.get(name, found["axis"])
        of = "influence" if name == "influence" else "accuracy"
        body.append([axis, of, *(between(found[i], True) for i in INDICES)])
        below = found.get("ceiling_minus_accuracy")
        if below and any(below[i]["mean"] is not None for i in INDICES):
            body.append([axis, "shortfall", *(between(below[i], True) for i in INDICES)])
    head = ["axis", "of", *(i.replace("_", " ") for i in INDICES)]
    return indices(head, body, "Shortfall: ceiling minus accuracy.", texts=2)


def _conditions(summary: Mapping[str, Any]) -> list[str]:
    conditions = summary["by_condition"]
    if len(conditions) < 2:
        return []
    judged, rules = "loss" in summary, rules_told(summary)
    body = [
        [
            name,
            between(one["accuracy"]),
            ceiling_told(one["ceiling"]["mean"], one["ceiling"]["known"]),
            *(number(one["baselines"].get(rule)) for rule in rules),
            number(one["accuracy"]["solved"]),
            *([loss_told(one)] if judged else []),
            one["answers"],
        ]
        for name, one in conditions.items()
    ]
    head = ["condition", "accuracy", "ceiling", *map(spelt, rules), "share solved"]
    head += [*(["loss"] if judged else []), "answers"]
    caption = "Curves above are those of the first condition."
    for one in summary.get("paired", {}).values():
        caption += f" Items right in {' and '.join(one['conditions'])} alike: {between(one)}."
        told = [f"{two['first']} minus {two['second']} {between(two, True)}" for two in one["differences"]]
        caption += f" Accuracy on the same items: {', '.join(told)}."
    return ["<h2>Conditions</h2>", grid(head, body, caption)]


def _orders(summary: Mapping[str, Any]) -> list[str]:
    gaps = gaps_told(summary)
    if not gaps:
        return []
    body = [
        [name, f"{gap['first']} minus {gap['second']}", between(gap, True), between(gap["above_chance"], True)]
        for name, gap in gaps.items()
    ]
    caption = "Accuracy in the first order minus that in the last, paired by replica."
    shown = [grid(["condition", "orders", "order gap", "gap above chance"], body, caption, texts=2)]
    each = [[name, one["order"], between(one), one["count"]] for name, gap in gaps.items() for one in gap["by_order"]]
    shown.append(grid(["condition", "order", "accuracy", "answers"], each))
    return ["<h2>Order of the evidence</h2>", *shown]


def _theory(summary: Mapping[str, Any]) -> list[str]:
    predictions = summary["theory"].get("predictions", [])
    if not predictions:
        return []
    body = [
        [
            one["name"].replace("_", " "),
            one["of"],
            one["condition"],
            ("" if one["exact"] else "~") + number(one["value"]),
            between(held_against(summary, one) or {}),
        ]
        for one in predictions
    ]
    caption = "What theory says that a rule or model gets, and what was measured here. ~: an approximation."
    if any(one["of"] == "margin" for one in predictions):
        caption += " Margins are those of the theory's own form and not measured."
    return [
        "<h2>Theory</h2>",
        grid(["rule or model", "measure", "condition", "theory", "measured"], body, caption, texts=3),
    ]


def _rows(summary: Mapping[str, Any]) -> str:
    parts = []
    for measure, what in (
        ("by_query_position", label(summary, "query")),
        ("by_evidence_position", label(summary, "evidence")),
        ("by_distance", "distance"),
    ):
        body = [
            [
                r["position"],
                between(r),
                ceiling_told(r["ceiling"], r["ceiling_known"]),
                number(r["baseline"]),
                between(r["log_probability"]),
                *([loss_told(r)] if "loss" in r else []),
                r["count"],
            ]
            for r in summary[measure]
        ]
        loss = ["loss"] if "loss" in summary else []
        head = [what, "accuracy", "ceiling", "order-free", "log-probability", *loss, "answers"]
        parts.append(f"<details><summary>Numbers by {escape(what)}</summary>{grid(head, body)}</details>")
    replicas = ", ".join(number(one) for one in summary["accuracy"]["replicas"])
    return f"<p>Mean accuracy of each replica: {escape(replicas)}.</p>\n" + "\n".join(parts)


def _config(run: Run) -> list[str]:
    if not run.settings:
        return []
    groups = {k: v for k, v in run.settings.items() if isinstance(v, Mapping) and v}
    top = {k: v for k, v in run.settings.items() if k not in groups}
    folded = [f"<details><summary>{escape(name)}</summary>{pairs(values)}</details>" for name, values in groups.items()]
    return ["<h2>Config</h2>", pairs(top), *folded]


def _manifest(run: Run) -> list[str]:
    command = run.config.get("command")
    told = {k: v for k, v in run.config.items() if k not in ("config", "command")}
    parts = ["<h2>How it was made</h2>"]
    if command:
        parts.append(f"<pre>{escape(shlex.join(map(str, command)))}</pre>")
    parts.append(pairs({name: value for name, value in {**told, **run.manifest}.items() if value != ""}))
    return parts
