"""What analyses found of a run: a figure and a table each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from positionbias.config.varied import replicas_told
from positionbias.config.varied import told as combination
from positionbias.reporting import figures, maps
from positionbias.reporting.folder import Run
from positionbias.reporting.html import between, escape, figure, grid
from positionbias.reporting.html import figures as side_by_side
from positionbias.reporting.told import band, shortened

Group = Sequence[tuple[str, Mapping[str, Any]]]  # names and contents of the files of one question, the newest last
MOST = 16  # layers, or the like, that the table has a line for


def analysed(run: Run) -> list[str]:
    """The section of a run's analyses; nothing where there are none."""
    if not run.analyses:
        return []
    combinations = run.summary.get("combinations") or []
    groups = _by_step({name: {**one, "of": _of(one, combinations)} for name, one in run.analyses.items()})
    newest = [group[-1] for group in groups]
    shown = []
    for group in groups:
        beside = [other for other in groups if other[-1][1]["analysis"] == group[-1][1]["analysis"]]
        shown += [*_figures(*group[-1], [other[-1][1] for other in beside]), *_over_steps(group, beside)]
    body = [row for _, one in newest for row in _rows(one)]
    found = [side_by_side(shown)] if shown else []
    if body:
        caption = (
            "Mean and 95 % interval over replicas, of the trained models and of the same before training. What differs"
            " by heads or positions is in the folder analysis."
        )
        found.append(grid(["analysis", "number", "trained", "before training"], body, caption, texts=2))
    return ["<h2>Analyses</h2>", *found, *_defined(newest)]


def _defined(newest: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What the numbers are, analysis by analysis, to be opened by who wants to know."""
    about = {one["analysis"].partition("(")[0]: one["about"] for _, one in newest if one.get("about")}
    parts = [f"<p><code>{escape(name)}</code> {escape(text)}</p>" for name, text in sorted(about.items())]
    return [f"<details><summary>What the numbers are</summary>{''.join(parts)}</details>"] if parts else []


def _by_step(analyses: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """Names and contents of the files of one analysis, condition and replicas together, the newest checkpoint last."""
    groups: dict[tuple[str, str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for name, one in analyses.items():
        groups.setdefault((one["analysis"], one["condition"], str(one.get("of_replicas"))), []).append((name, one))
    return [sorted(group, key=lambda named: named[1]["step"]) for group in groups.values()]


def _over_steps(group: Group, beside: Sequence[Group]) -> list[str]:
    """Of several checkpoints a curve over training for each of a few numbers of the array that is shown.

    `beside` are all groups of this analysis, whose figures have one scale.
    """
    name, last = group[-1]
    lines = _training(group)
    if not lines:
        return []
    title = f"{_called(last)}: {last['shown'].replace('_', ' ')}"
    told = f"{title} over training, condition {last['condition']}{last['of']}."
    others = [found for found in map(_training, beside) if found]
    svg = figures.by_layer(f"{name}-over-training", title, "step", lines, {}, others)
    return [figure(svg, f"{told} {band(last['replicas'])}{_scale(others)}")]


def _training(group: Group) -> dict[str, list[dict[str, Any]]]:
    """Rows over steps by what they are of; none where there is one checkpoint, or too many numbers."""
    last = group[-1][1]
    arrays = [one["arrays"].get(one["shown"], {}) for _, one in group]
    counts = {len(array.get("numbers") or ()) for array in arrays}
    if len(group) == 1 or len(counts) > 1 or not 1 <= (count := counts.pop()) <= MOST:
        return {}
    axes, places = arrays[-1]["axes"], list(np.ndindex(*arrays[-1]["sizes"]))
    lines = {}
    for i in range(count):
        label = ", ".join(f"{axis} {_named(last, axis, at)}" for axis, at in zip(axes, places[i], strict=True))
        steps = [one["step"] for _, one in group]
        rows = [array["numbers"][i] for array in arrays]
        if steps[0] > 0:  # the models before training, which all of them tell
            steps, rows = [0, *steps], [arrays[0]["at_init"][i], *rows]
        lines[label] = [{"position": step, **row} for step, row in zip(steps, rows, strict=True)]
    return lines


def _figures(name: str, one: Mapping[str, Any], beside: Sequence[Mapping[str, Any]]) -> list[str]:
    """The array that is shown: a curve of every layer, or a map of layers and heads, or places that have names.

    `beside` has all of this analysis, of other replicas or conditions, whose figures have one scale.
    """
    array = one["arrays"].get(one["shown"], {})
    if not array.get("numbers") or not 1 <= len(array["axes"]) <= 2:
        return []
    arrays = [other["arrays"].get(other["shown"], {}) for other in beside]
    arrays = [other for other in arrays if other.get("numbers") and other["axes"] == array["axes"]]
    title = f"{_called(one)}: {one['shown'].replace('_', ' ')}"
    about = " ".join(one.get("about", "").partition("\n\n")[0].split())
    asked = f"{one['items']} items a replica, condition {one['condition']}, step {one['step']}{one['of']}"
    told = f"{title}, of {asked}. {about}".strip()
    first, last = array["axes"][0], array["axes"][-1]
    if len(array["axes"]) == 2 and (first == "row" or last == "head" or last in one["labels"]):
        ticks = [[_named(one, axis, at) for at in range(size)] for axis, size in _sizes(array).items()]
        both = _means(array, "numbers"), _means(array, "at_init")
        others = [(_means(other, "numbers"), _means(other, "at_init")) for other in arrays]
        svg = maps.two_maps(name, title, *both, list(_sizes(array)), ticks, others)
        mean = f"Mean over {one['replicas']} replicas" if one["replicas"] > 1 else "One replica"
        return [figure(svg, f"{told} {mean}; right: before training.{_scale(arrays)}")]
    lines, before = (_lines(one, array, which) for which in ("numbers", "at_init"))
    room = [{"": [*other["numbers"], *({"mean": row["mean"]} for row in other["at_init"])]} for other in arrays]
    svg = figures.by_layer(name, title, array["axes"][-1], lines, before, room)
    told += f" Dashed, in paler colours: before training. {band(one['replicas'])}"
    return [figure(svg, told + _scale(arrays))]


def _scale(beside: Sequence[Any]) -> str:
    return " On one scale with this figure of other replicas or conditions." if len(beside) > 1 else ""


def _of(one: Mapping[str, Any], combinations: Sequence[Mapping[str, Any]]) -> str:
    """Which replicas were asked, where not all were, and which hyperparameters they have, where those differ."""
    of = one.get("of_replicas")
    if not isinstance(of, list):
        return ""
    own = next((found for found in combinations if set(of) <= set(found["members"])), None)
    return f", of {replicas_told(of) if own is None else combination({**own, 'members': of})}"


def _called(one: Mapping[str, Any]) -> str:
    """As it is asked for on a command line, with the arguments that are not the usual."""
    return shortened(one["analysis"], "analyses")


def _sizes(array: Mapping[str, Any]) -> dict[str, int]:
    return dict(zip(array["axes"], array["sizes"], strict=True))


def _named(one: Mapping[str, Any], axis: str, at: int) -> str:
    return str(one["labels"][axis][at] if axis in one["labels"] else at)


def _means(array: Mapping[str, Any], which: str) -> np.ndarray:
    """An array of its sizes, nan where there is nothing."""
    values = [np.nan if row["mean"] is None else row["mean"] for row in array[which]]
    return np.array(values, np.float64).reshape(array["sizes"])


def _lines(one: Mapping[str, Any], array: Mapping[str, Any], which: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a curve by its label: one a layer, or one in all."""
    rows, size = array[which], array["sizes"][-1]
    split = [rows[i : i + size] for i in range(0, len(rows), size)]
    first = array["axes"][0]
    labels = [f"{first} {_named(one, first, i)}" for i in range(len(split))] if len(array["axes"]) == 2 else [""]
    places = _places(one, array["axes"][-1], size)
    numbered = ([{"position": at, **row} for at, row in zip(places, some, strict=True)] for some in split)
    return dict(zip(labels, numbered, strict=False))


def _places(one: Mapping[str, Any], axis: str, size: int) -> list[float]:
    """Where the numbers along an axis stand: at what its names say, such as steps and strengths, else one by one."""
    try:
        found = [float(_named(one, axis, at)) for at in range(size)]
    except ValueError:
        return list(range(size))
    return found if np.isfinite(found).all() else list(range(size))  # as of a thing that is called "nan"


def _rows(one: Mapping[str, Any]) -> list[list[str]]:
    """A row for each number of arrays that have one, or one for each of a few places with names, such as layers."""
    found: list[list[str]] = []
    for name, array in one["arrays"].items():
        named = len(array["axes"]) <= 1 and all(axis in one["labels"] for axis in array["axes"])
        if not named or not array.get("numbers") or len(array["numbers"]) > MOST:
            continue
        for i, place in enumerate(np.ndindex(*array["sizes"])):
            at = zip(array["axes"], place, strict=True)
            where = ", ".join(f"{axis} {_named(one, axis, number)}" for axis, number in at)
            told = f"{name.replace('_', ' ')}{f' ({where})' if where else ''}"
            found.append(
                [
                    "" if found else f"{_called(one)}{one['of']}",
                    told,
                    between(array["numbers"][i]),
                    between(array["at_init"][i]),
                ]
            )
    return found
