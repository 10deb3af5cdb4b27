"""An evaluation as a person reads it in a terminal: aligned tables, and remarks on what must not be overlooked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from positionbias.config.varied import label, members, replicas_told
from positionbias.evaluation.rows import LOSS
from positionbias.evaluation.statistics import INDICES, SOLVED_WITHIN, indices

ABOVE_CEILING = 0.02  # accuracy further above the ceiling than this is told
LONGEST_TABLE = 32  # rows; a longer curve is thinned in the terminal, never in files
MOST_COLUMNS = 6  # combinations of hyperparameters whose curves stand side by side in the terminal
EVEN = "what masks and biases alone make, if attention is even over what operators see (theory)"
RULES = ("chance", "majority", "nearest", "order_free")  # baselines that most tasks have, in the order they are told


def table(summary: Mapping[str, Any]) -> str:
    """An evaluation as aligned text.

    When it was measured, accuracy and loss by query and by evidence position in the first condition, a line for every
    condition, order gap and number that theory predicts, each replica's accuracy, what is paired, and remarks. Of a run
    that has no training, the influence by input position. Of one whose replicas differ in more than seeds, a line for
    every combination and condition, and the mean curve of each.
    """
    if summary.get("combinations"):
        told = [] if untrained(summary) else remarks(summary)
        return "\n".join([f"evaluated {when(summary)}", *_combinations(summary), *told, summary["note"]])
    if untrained(summary):
        return "\n".join([f"evaluated {when(summary)}", *_influence(summary)])
    accuracy = summary["accuracy"]
    labels = summary.get("axes", {})
    lines: list[str] = [f"evaluated {when(summary)}"] if summary["steps"] is not None else []
    for axis in axes_told(summary):
        label = labels.get(axis, f"{axis} position")
        lines += [*_curve(label, summary, axis), ""]
        lines += [*_losses(label, summary, axis), ""] if LOSS in summary else []
    lines += [*_conditions(summary), *_gaps(summary), *_predictions(summary)]
    lines.append(f"replicas  {'  '.join(number(one) for one in accuracy['replicas'])}")
    if accuracy["solved"] is not None:
        lines.append(f"{solved_count(summary)} solved the task: came within 0.02 of the ceiling")
    for one in summary.get("paired", {}).values():
        mean, between = _cells(one, None, None)[:2]
        lines.append(f"right in {' and '.join(one['conditions'])} alike: {mean} {between}")
        lines += [f"{two['first']} minus {two['second']}: {' '.join(_signed(two))}" for two in one["differences"]]
    lines += remarks(summary)
    if accuracy["low"] is not None:
        lines.append("intervals: 95 % Student t over replicas")
    if summary.get("note"):
        lines.append(summary["note"])
    return "\n".join(lines)


def _combinations(summary: Mapping[str, Any]) -> list[str]:
    """A line for every combination and condition, then curves, a column for each combination."""
    found = {label(one["values"]): one for one in summary["combinations"]}
    names = list(summary["by_condition"])
    if untrained(summary):
        curves, size = [("influence", "share of influence by input position")], len(summary["influence"])
        lines = [f"even would be {1 / size:.3f}"]
    else:
        curves = [(f"by_{axis}_position", summary["axes"][axis]) for axis in axes_told(summary)]
        curves = [(name, f"accuracy by {told}{_where(summary)}") for name, told in curves]
        head = [*next(iter(found.values()))["values"], "replicas", *(["condition"] if len(names) > 1 else [])]
        body = []
        for one in found.values():
            for name, told in one["by_condition"].items():
                where = [name] if len(names) > 1 else []
                beside = [*_cells(told["accuracy"], told["ceiling"]["mean"], told["baselines"].get("order_free"))]
                loss = _cells(told[LOSS])[:1] if LOSS in told else []
                of = [*map(str, one["values"].values()), members(one["members"])]
                body.append([*of, *where, *beside, solved_count(told) or "-", *loss])
        head += ["mean", "interval", "ceiling", spelt("order_free"), "solved", *([LOSS] if LOSS in summary else [])]
        lines = ["accuracy of each combination", *_aligned([head, *body])]
    for curve, title in curves if len(found) <= MOST_COLUMNS else ():
        rows, every = _thinned(summary, curve)
        each = {name: {row["position"]: row["mean"] for row in one[curve]} for name, one in found.items()}
        body = [[str(row["position"]), *(number(of.get(row["position"])) for of in each.values())] for row in rows]
        of = ["", *(replicas_told(one["members"]) for one in found.values())]
        lines += ["", f"{title}{every}", *_aligned([["at", *found], of, *body])]
    return [*lines, ""]


def held_against(summary: Mapping[str, Any], prediction: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What was measured of that which a prediction speaks of, as an interval; None if nothing was."""
    one = summary["by_condition"].get(prediction["condition"])
    if one is None or prediction["of"] not in ("accuracy", "loss"):
        return None
    if prediction["of"] == "loss" and LOSS not in one:  # of tokens it is the negative log-probability
        found = one["log_probability"]
        mean, high, low = (None if found[at] is None else -found[at] for at in ("mean", "low", "high"))
        return {"mean": mean, "low": low, "high": high}
    return one[prediction["of"]]


def axes_told(summary: Mapping[str, Any]) -> list[str]:
    """The axes, of query and evidence, whose curves are told: one of a single position only if both are."""
    axes = ["query", "evidence"]
    longer = [axis for axis in axes if len(summary[f"by_{axis}_position"]) > 1]
    return longer or axes


def when(summary: Mapping[str, Any]) -> str:
    """`at step N of M`, or `before training`."""
    if summary["steps"] == 0:
        return "before training"
    return f"at step {summary['steps']}" + (f" of {summary['of']}" if summary["of"] is not None else "")


def untrained(summary: Mapping[str, Any]) -> bool:
    """Whether it is of a run of 0 steps, of which only the influence says something."""
    return bool(summary["steps"] == 0 == summary["of"])


def even_shares(summary: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """An index of the influence in even shares, of which each of the T input positions would have one: times T."""
    size, found = len(summary["influence"]), summary["indices"]["influence"][name]
    return {bound: None if found[bound] is None else found[bound] * size for bound in ("mean", "low", "high")}


def even_attention(summary: Mapping[str, Any]) -> list[float]:
    """The influence of even attention by input position, as long as what was measured; [] where theory has none."""
    found = summary["theory"].get("influence", [])
    measured = summary["influence"] or summary["at_init"].get("influence", [])
    return list(found) if len(found) == len(measured) else []


def stored_told(stored: Mapping[str, Any]) -> str:
    """`N stored items of FOLDER`."""
    return f"{stored['items']} stored items of {stored['folder']}"


def solved_count(measured: Mapping[str, Any]) -> str:
    """`K of N`: how many replicas solved the task, of those of which it is known; empty if of none."""
    accuracy = measured["accuracy"]
    if accuracy["solved"] is None:
        return ""
    pairs = zip(accuracy["replicas"], measured["ceiling"]["replicas"], strict=True)
    known = sum(None not in pair for pair in pairs)
    return f"{round(accuracy['solved'] * known)} of {known}"


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """A line for every condition whose ceiling is known of some answers only, is chance, or is exceeded too far."""
    lines = []
    for name, one in summary["by_condition"].items():
        where = f" in condition {name}" if len(summary["by_condition"]) > 1 else ""
        ceiling, chance, known = one["ceiling"]["mean"], one["baselines"].get("chance"), one["ceiling"]["known"]
        if 0 < known < 1:
            lines.append(
                f"the ceiling{where} is known for {round(known * one['answers'])} of {one['answers']} answers and is"
                f" their mean; accuracy on these is {number(one['ceiling']['accuracy'])}"
            )
        elif None not in (ceiling, chance) and ceiling <= chance + SOLVED_WITHIN:
            lines.append(f"the ceiling is chance{where}: the model cannot see what the answers need")
        excess = one["accuracy"]["deviation"]["mean"]
        if excess is not None and excess > ABOVE_CEILING:
            lines.append(
                f"accuracy is {excess:.3f} above the ceiling{where}: something leaks or is mislabelled, or the answers"
                " are too few"
            )
    return lines


def _curve(label: str, summary: Mapping[str, Any], axis: str) -> list[str]:
    theory = summary["theory"].get(axis)
    rows, every = _thinned(summary, f"by_{axis}_position")
    partly = 0 < summary["ceiling"]["known"] < 1
    header = ["at", "mean", "interval", "ceiling", *(["known"] if partly else []), "baseline"]
    header += ["theory"] if theory is not None else []
    body = []
    for row in rows:
        ceiling = [row["ceiling"], *([row["ceiling_known"]] if partly else [])]
        cells = [str(row["position"]), *_cells(row, *ceiling, row["baseline"])]
        if theory is not None:
            cells.append(number(theory[row["position"]] if 0 <= row["position"] < len(theory) else None))
        body.append(cells)
    ceiling = [summary["ceiling"]["mean"], *([summary["ceiling"]["known"]] if partly else [])]
    mean = _cells(summary["accuracy"], *ceiling, summary["baselines"]["order_free"])
    foot = ["all", *mean, *([number(summary["theory"].get("mean"))] if theory is not None else [])]
    return [f"accuracy by {label}{_where(summary)}{every}", *_aligned([header, *body, foot])]


def rules_told(summary: Mapping[str, Any]) -> list[str]:
    """The names of the baselines that any of the conditions has, those of most tasks first."""
    found = dict.fromkeys(name for one in summary["by_condition"].values() for name in one["baselines"])
    return sorted(found, key=lambda name: RULES.index(name) if name in RULES else len(RULES))


def spelt(rule: str) -> str:
    """The name of a baseline as a person reads it."""
    return rule.replace("_", "-")


def gaps_told(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The order gap of every condition that has one."""
    return {name: one["order_gap"] for name, one in summary["by_condition"].items() if one["order_gap"]}


def _conditions(summary: Mapping[str, Any]) -> list[str]:
    """A line for every condition: accuracy, ceiling and what simple rules reach; the task's own rules stand below."""
    conditions, judged = summary["by_condition"], LOSS in summary
    partly = any(0 < one["ceiling"]["known"] < 1 for one in conditions.values())
    rules = [rule for rule in rules_told(summary) if rule in RULES]
    own = [rule for rule in rules_told(summary) if rule not in RULES]
    body = []
    for name, one in conditions.items():
        ceiling = [one["ceiling"]["mean"], *([one["ceiling"]["known"]] if partly else [])]
        beside = [*ceiling, *(one["baselines"].get(rule) for rule in rules)]
        body.append([name, *_cells(one["accuracy"], *beside, *([one[LOSS]["mean"]] if judged else []))])
    head = [
        "condition",
        "accuracy",
        "interval",
        "ceiling",
        *(["known"] if partly else []),
        *map(spelt, rules),
        *([LOSS] if judged else []),
    ]
    lines = [*_aligned(_named([head, *body])), ""]
    if own:
        beside = [[name, *(number(one["baselines"].get(rule)) for rule in own)] for name, one in conditions.items()]
        lines += [*_aligned(_named([["simple rules", *map(spelt, own)], *beside])), ""]
    return lines


def _gaps(summary: Mapping[str, Any]) -> list[str]:
    """A line for every condition that has an order gap."""
    body = [
        [name, f"{gap['first']} minus {gap['second']}", *_signed(gap), *_signed(gap["above_chance"])]
        for name, gap in gaps_told(summary).items()
    ]
    header = ["order gap", "orders", "mean", "interval", "above chance", "interval"]
    return [*_aligned(_named([header, *body])), ""] if body else []


def _predictions(summary: Mapping[str, Any]) -> list[str]:
    """A line for every measure and condition that theory predicts something of."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in summary["theory"].get("predictions", []):
        groups.setdefault((one["of"], one["condition"]), []).append(one)
    lines = []
    for (of, condition), several in groups.items():
        where = f" in condition {condition}" if len(summary["by_condition"]) > 1 else ""
        told = [f"{one['name']} {'' if one['exact'] else '~'}{number(one['value'])}" for one in several]
        found = held_against(summary, several[0])
        measured = "" if found is None else f"; measured {' '.join(_cells(found))}"
        lines.append(f"theory of the {of}{where}: {', '.join(told)}{measured}")
    return [*lines, ""] if lines else []


def _where(summary: Mapping[str, Any]) -> str:
    """Which condition a curve is of, where there are several."""
    names = list(summary["by_condition"])
    return f" in condition {names[0]}" if len(names) > 1 else ""


def _losses(label: str, summary: Mapping[str, Any], axis: str) -> list[str]:
    rows, every = _thinned(summary, f"by_{axis}_position")
    body = [[str(row["position"]), *_cells(row[LOSS], row[LOSS]["floor"])] for row in rows]
    foot = ["all", *_cells(summary[LOSS], summary[LOSS]["floor"])]
    rules = [f"{name} {number(value)}" for name, value in summary[LOSS]["rules"].items()]
    title = f"loss by {label}{_where(summary)}{every}" + (f" (simple rules: {', '.join(rules)})" if rules else "")
    return [title, *_aligned([["at", "mean", "interval", "floor"], *body, foot])]


def _influence(summary: Mapping[str, Any]) -> list[str]:
    """The shares of the input positions, and their indices."""
    rows, every = _thinned(summary, "influence")
    size = len(summary["influence"])
    theory = even_attention(summary)
    beside = ["even attention"] if theory else []
    body = [[str(row["position"]), *_cells(row, *([theory[row["position"]]] if theory else []))] for row in rows]
    lines = [f"share of influence by input position{_where(summary)}{every}; even would be {1 / size:.3f}"]
    lines += [*_aligned([["at", "mean", "interval", *beside], *body]), ""]
    told = [[name.replace("_", " "), *_signed(even_shares(summary, name))] for name in INDICES]
    if theory:
        alone = indices(np.asarray(theory) * size)
        for line, name in zip(told, INDICES, strict=True):
            line.append(_signed({"mean": alone[name], "low": None, "high": None})[0])
    lines += _aligned(_named([["in even shares", "mean", "interval", *beside], *told]))
    lines += [f"even attention: {EVEN}"] if theory else []
    return [*lines, f"intervals: 95 % Student t over {len(summary['accuracy']['replicas'])} replicas"]


def _thinned(summary: Mapping[str, Any], curve: str) -> tuple[list[Mapping[str, Any]], str]:
    """The rows of a curve that a terminal shows, and how the title says so."""
    rows = summary[curve]
    step = -(-len(rows) // LONGEST_TABLE)
    shown = sorted({*range(0, len(rows), step), len(rows) - 1})
    return [rows[i] for i in shown], f", one in {step} shown" if step > 1 else ""


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(c.rjust(w) for c, w in zip(line, wide, strict=True)).rstrip() for line in lines]


def _named(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """The lines with their first cells, which are names, on the left."""
    wide = max(len(line[0]) for line in lines)
    return [[line[0].ljust(wide), *line[1:]] for line in lines]


def _signed(row: Mapping[str, Any]) -> list[str]:
    """Mean and interval of a difference."""
    mean, low, high = ("-" if row[at] is None else f"{row[at]:+z.3f}" for at in ("mean", "low", "high"))
    return [mean, "-" if row["low"] is None else f"[{low}, {high}]"]


def _cells(row: Mapping[str, Any], *beside: float | None) -> list[str]:
    between = "-" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
    return [number(row["mean"]), between, *(number(one) for one in beside)]


def number(value: float | None) -> str:
    """Three decimals, or a dash for none."""
    return "-" if value is None else f"{value:.3f}"
