"""Draw position signatures that configs/signature/ measured into docs/, and keep their numbers.

    python scripts/signatures.py FOLDER NAME

FOLDER is that of a finished sweep. Written are docs/NAME.json, the influence of every input of every cell, in shares of
which each position has one if all matter alike, its indices with intervals over replicas, the same of even attention
where theory tells it, and how far the two are apart (total variation: 0 if alike, 1 if nowhere the same); and
docs/NAME.png, a small panel a cell, rows of the first axis of the sweep below one another if it has two.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import finished
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from positionbias.evaluation.statistics import INDICES, indices
from positionbias.evaluation.table import even_attention

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
COLUMNS = 9  # of a sweep of one axis
LEAST, MOST = 0.02, 40.0  # shares that are drawn
BLUE, BLACK, GREY = "#0072B2", "#222222", "#BBBBBB"


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Every cell by name, in the order of the plan."""
    found = {}
    for cell, summary, manifest in finished.cells(folder):
        rows, theory = summary["influence"], np.asarray(even_attention(summary))
        measured, size = np.asarray([row["mean"] for row in rows]), len(rows)
        one: dict[str, Any] = {
            "overrides": cell["overrides"],
            "replicas": len(summary["accuracy"]["replicas"]),
            "shares": _rounded(measured * size),
            **{end: _rounded(np.asarray([row[end] for row in rows]) * size) for end in ("low", "high")},
            "indices": {
                name: {end: round(row[end] * size, 4) for end in ("mean", "low", "high")}
                for name, row in summary["indices"]["influence"].items()
                if name in INDICES
            },
            "commit": manifest["commit"],
            "devices": manifest["devices"],
        }
        if theory.size:
            alone = indices(theory * size)
            one["even_attention"] = {
                "shares": _rounded(theory * size),
                "indices": {name: round(alone[name], 4) for name in INDICES},
                "distance": round(float(np.abs(measured - theory).sum() / 2), 4),
            }
        found[cell["name"]] = one
    return found


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{one:.4g}") for one in values]


def draw(cells: dict[str, Any]) -> Figure:
    """A panel a cell."""
    # Of a sweep of two axes every value of the first has one cell for each of the second.
    told = [tuple(cell["overrides"].values()) for cell in cells.values()]
    firsts, seconds = (list(dict.fromkeys(one[i] for one in told if len(one) == 2)) for i in (0, 1))
    grid = len(firsts) * len(seconds) == len(cells) and min(len(firsts), len(seconds)) > 1
    lines, columns = (len(firsts), len(seconds)) if grid else (-(-len(cells) // COLUMNS), COLUMNS)
    figure = Figure(
        figsize=((0.95 if grid else 1.15) * columns + 1.2, (0.8 if grid else 1.0) * lines + 0.9),
        layout="constrained",
        dpi=110,
    )
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat:
        panel.set_visible(False)
    for number, (name, cell) in enumerate(cells.items()):
        line, column = divmod(number, columns)
        if grid:
            first, second = cell["overrides"].values()
            line, column = firsts.index(first), seconds.index(second)
        panel = panels[line, column]
        _paint(panel, cell)
        if not grid:
            panel.set_title(name, fontsize=7)
            panel.tick_params(labelbottom=number + columns >= len(cells))
        if grid and line == 0:
            panel.set_title(second, fontsize=8)
        if grid and column == 0:
            panel.set_ylabel(first.replace("causal & ", "causal &\n"), fontsize=7, rotation=0, ha="right", va="center")
    figure.supxlabel("input position", fontsize=9)
    figure.supylabel("influence on the last output, 1 if all positions matter alike", fontsize=9)
    figure.suptitle(
        "line: measured, with its 95 % interval; dots: even attention under the same mask, by theory", fontsize=9
    )
    return figure


def _paint(panel: Axes, cell: dict[str, Any]) -> None:
    panel.set_visible(True)
    panel.axhline(1, color=GREY, linewidth=0.6)
    shares = np.asarray(cell["shares"])
    where = np.arange(len(shares))
    panel.fill_between(where, np.maximum(cell["low"], LEAST / 2), cell["high"], color=BLUE, alpha=0.25, linewidth=0)
    panel.plot(where, np.maximum(shares, LEAST / 2), color=BLUE, linewidth=1.1)
    if "even_attention" in cell:
        panel.plot(where, np.maximum(cell["even_attention"]["shares"], LEAST / 2), ":", color=BLACK, linewidth=1.1)
    panel.set_yscale("log")
    panel.set_ylim(LEAST, MOST)
    panel.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
    panel.minorticks_off()
    panel.tick_params(labelsize=6, length=2)


def main(folder: pathlib.Path, name: str) -> None:
    """Read, write and draw."""
    cells = read(folder)
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(cell)}" for key, cell in cells.items())
    (DOCS / f"{name}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    draw(cells).savefig(DOCS / f"{name}.png")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/signatures.py SWEEP_FOLDER NAME")
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
