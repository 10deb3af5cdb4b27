"""Curves of several models in one figure: the cells of a sweep, or the combinations of a run's hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from positionbias.reporting.figures import (
    ARMS,
    BLACK,
    BLUE,
    FEW,
    GREY,
    LINES,
    MARKERS,
    SKY,
    WIDTH,
    Arm,
    Rows,
    column,
    curve,
    draw,
    finish,
    height_for,
    plain_numbers,
    unit_axis,
)

PANELS = 4  # side by side
LEAST_SHARE = 1e-3  # of an even share of influence: what has less is not drawn
CLOSE = 0.01  # accuracies that differ by no more are one line, as wide as it is drawn


def by_state_size(name: str, curves: Mapping[str, Rows]) -> str:
    """Accuracy over the numbers that a model keeps, a curve for each kind of model; rows tell these as their position.

    From the eighth curve on colours come again, with dashes and with other markers.
    """

    def paint(axes: Any) -> None:
        for i, (label, rows) in enumerate(curves.items()):
            color, marker = ARMS[i % len(ARMS)], MARKERS[i % len(MARKERS)]
            line = LINES[i // len(ARMS) % len(LINES)]
            mean, low, high = (column(rows, key) for key in ("mean", "low", "high"))
            known = np.isfinite(low)
            position = column(rows, "position")
            axes.plot(position, mean, line, color=color, marker=marker, label=Arm(label, rows).short)
            axes.vlines(position[known], low[known], high[known], color=color, linewidth=1.2, alpha=0.6)
        axes.set_xscale("log")
        unit_axis(axes)
        axes.set_xlabel("state size (numbers kept to go on with a sequence)")
        axes.set_ylabel("accuracy")
        plain_numbers(axes.xaxis)
        axes.margins(x=0.03)

    return draw(name, "accuracy by size of the state", paint, height_for(len(curves)))


def coinciding(curves: Sequence[Rows]) -> list[list[int]]:
    """Which curves lie on one another, so that the last would hide the others; every curve is in one group."""
    groups: list[list[int]] = []
    for i, rows in enumerate(curves):
        group = next((group for group in groups if _alike(curves[group[0]], rows)), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return groups


def _alike(rows: Rows, others: Rows) -> bool:
    """Whether two curves are one line for the eye."""
    if not np.array_equal(column(rows, "position"), column(others, "position")):
        return False
    return np.allclose(column(rows, "mean"), column(others, "mean"), rtol=0, atol=CLOSE, equal_nan=True)


def arms(name: str, xlabel: str, compared: Sequence[Arm]) -> str:
    """The curves of a sweep's cells or a run's combinations along one axis, each with its ceiling dashed in its colour.

    Those that lie on one another take turns, in dashes and in markers, so that none hides another.
    """
    turns = {i: (at, len(group)) for group in coinciding([arm.rows for arm in compared]) for at, i in enumerate(group)}

    def paint(axes: Any) -> None:
        known = False
        for i, arm in enumerate(compared):
            color, marker = ARMS[i % len(ARMS)], MARKERS[i % len(MARKERS)]
            curve(axes, arm.rows, color, "", marker=marker, turn=turns[i])
            axes.plot([], [], color=color, marker=marker if len(arm.rows) <= FEW else "", label=arm.short)
            ceiling = column(arm.rows, "ceiling")
            if np.isfinite(ceiling).any():
                dash = (4 * i, (4, 6))  # offset, so that equal ceilings show every colour
                axes.plot(column(arm.rows, "position"), ceiling, linestyle=dash, color=color, linewidth=1.1, zorder=3)
                known = True
        if known:
            axes.plot([], [], "--", color=GREY, linewidth=1.1, label="ceiling")
        unit_axis(axes)
        finish(axes, xlabel, "accuracy")

    return draw(name, f"accuracy by {xlabel}, side by side", paint, height_for(len(compared)))


def influences(
    name: str, compared: Sequence[Arm], at_init: Mapping[str, Rows], even: Mapping[str, Sequence[float]]
) -> str:
    """The influence by input position of a sweep's cells, a panel each, in shares of which every position has one if
    all matter alike; by label, `at_init` has the curves before training, and `even` those of even attention.

    The scale is logarithmic and ends at a thousandth of such a share.
    """
    lines = -(-len(compared) // PANELS)

    def paint(axes: Any) -> None:
        panels = np.ravel(axes)
        for panel, arm in zip(panels, compared, strict=False):
            panel.axhline(1, linestyle="--", color=GREY, linewidth=1)
            for rows, color, line in ((arm.rows, BLUE, "-"), (at_init.get(arm.label, ()), SKY, "-.")):
                curve(panel, _even_shares(rows), color, "", marker=".", line=line)
            alone = np.asarray(even.get(arm.label, ()), np.float64)
            panel.plot(np.where(alone > 0, alone, np.nan) * len(alone), ":", color=BLACK)
            panel.set_title(arm.title, fontsize=9)
            panel.set_xlim(-0.03 * len(arm.rows), 1.03 * len(arm.rows) - 1)  # also where only few points are drawn
            panel.set_yscale("log")
            plain_numbers(panel.yaxis)
            finish(panel, "", "")
        panels[0].set_ylim(bottom=max(LEAST_SHARE, panels[0].get_ylim()[0]))
        for panel in panels[len(compared) :]:
            panel.set_visible(False)
        panels[0].figure.supxlabel("input position", fontsize="medium")
        panels[0].figure.supylabel("influence, in even shares", fontsize="medium")

    label = "influence by input position, side by side"
    return draw(name, label, paint, 0.8 + 1.5 * lines, 2 * WIDTH, (lines, PANELS))


def _even_shares(rows: Rows) -> Rows:
    """Rows of the influence times their number; none where a logarithmic axis has no place for it."""
    bounds = ("mean", "low", "high")
    return [{**row, **{at: len(rows) * row[at] if (row[at] or 0) > 0 else None for at in bounds}} for row in rows]
