"""Draw what configs/recall/operators.py measured into docs/, and keep its numbers: python scripts/recall.py FOLDER.

FOLDER is that of the finished sweep. Written are recall.json, every cell's state size and accuracy, in all, by slot and
by delay, with intervals over replicas, and recall.png: accuracy over the state size, by slot and by delay.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import finished
from matplotlib.figure import Figure

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
BINS = 8  # of delays, of which there are more than a curve can show
COLUMNS = 5
SHADES = ("#C6DBEF", "#6BAED6", "#2171B5", "#08306B")  # from the smallest state to the largest


def told(row: dict[str, Any]) -> dict[str, Any]:
    """Mean and interval, rounded as they are drawn."""
    return {key: None if row[key] is None else round(row[key], 4) for key in ("mean", "low", "high")}


def read(folder: pathlib.Path) -> dict[str, Any]:
    """All cells by curve, from the smallest state to the largest."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for cell, summary, manifest in finished.cells(folder):
        curves.setdefault(cell["curve"], []).append(
            {
                "cell": cell["name"],
                "state_size": summary["state_size"],
                "accuracy": told(summary["accuracy"]),
                "replicas": [round(one, 4) for one in summary["accuracy"]["replicas"]],
                "ceiling": round(summary["ceiling"]["mean"], 4),
                "by_slot": [told(row) for row in summary["by_evidence_position"]],
                "by_delay": [told(row) for row in summary["by_query_position"]],
                "tilt_by_slot": told(summary["indices"]["evidence_position"]["tilt"]),
                "tilt_by_delay": told(summary["indices"]["query_position"]["tilt"]),
                "commit": manifest["commit"],
                "devices": manifest["devices"],
            }
        )
    return {name: sorted(cells, key=lambda cell: cell["state_size"]) for name, cells in curves.items()}


def draw(curves: dict[str, Any]) -> Figure:
    """A panel a kind of model, each with accuracy by state size, by slot and by delay below one another."""
    lines = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(2.3 * COLUMNS, 4.9 * lines), layout="constrained", dpi=100)
    panels = figure.subplots(3 * lines, COLUMNS, sharey=True, squeeze=False)
    for panel in panels.flat:
        panel.set_visible(False)
    for i, (name, cells) in enumerate(curves.items()):
        top, by_slot, by_delay = panels[3 * (i // COLUMNS) : 3 * (i // COLUMNS) + 3, i % COLUMNS]
        size = [cell["state_size"] for cell in cells]
        mean = [cell["accuracy"]["mean"] for cell in cells]
        ends = [[abs(cell["accuracy"][end] - cell["accuracy"]["mean"]) for cell in cells] for end in ("low", "high")]
        top.errorbar(size, mean, ends, color=SHADES[-1], capsize=2, linewidth=1.2)
        top.scatter(size, mean, color=SHADES, s=22, zorder=3)
        top.set_xscale("log")
        top.set_xticks(size, [f"{one:,}" for one in size])
        top.minorticks_off()
        top.set_title(name, fontsize=9)
        top.set_xlabel("numbers kept", fontsize=8)
        for cell, shade in zip(cells, SHADES, strict=True):
            slots = [row["mean"] for row in cell["by_slot"]]
            by_slot.plot(range(len(slots)), slots, color=shade, linewidth=1.2)
            delays, step = [row["mean"] for row in cell["by_delay"]], len(cell["by_delay"]) // BINS
            middles = [step * (k + 0.5) for k in range(BINS)]
            means = [sum(delays[step * k : step * (k + 1)]) / step for k in range(BINS)]
            by_delay.plot(middles, means, color=shade, linewidth=1.2)
        by_slot.set_xlabel("slot of the pair", fontsize=8)
        by_delay.set_xlabel("delay of the question", fontsize=8)
        for panel in (top, by_slot, by_delay):
            panel.set_visible(True)
            panel.set_ylim(-0.03, 1.05)
            panel.tick_params(labelsize=7)
            if i % COLUMNS == 0:
                panel.set_ylabel("accuracy", fontsize=8)
    figure.suptitle(
        "Each operator at four sizes of state, the darker the larger: the points, and the lines below them", fontsize=9
    )
    return figure


def main(folder: pathlib.Path) -> None:
    """Read, write and draw."""
    curves = read(folder)
    (DOCS / "recall.json").write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    draw(curves).savefig(DOCS / "recall.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/recall.py SWEEP_FOLDER")
    main(pathlib.Path(sys.argv[1]))
