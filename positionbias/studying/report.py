"""`studies/NAME/report.html`: every claim of a study with its figure, its verdict and the way to its runs."""

from __future__ import annotations

import math
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any

from positionbias.files import write_text
from positionbias.reporting import figures
from positionbias.reporting.html import escape, figure, grid, page
from positionbias.reporting.html import figures as side_by_side
from positionbias.studying import told
from positionbias.studying.definition import SCALES, Claim, Study
from positionbias.studying.results import Records, current

NAME = "report.html"
HEAD = ["claim", "verdict", "ours", "asked", "untrained", "null", "theirs", "source", "where"]
OURS, RANGE, CONTROL = "#0072B2", "#009E73", "#888888"


def write(folder: pathlib.Path, study: Study, records: Records) -> pathlib.Path:
    """Write the page; returns its path. Raises WriteError."""
    body = [f"<h1>{escape(study.title)}</h1>", f'<p class="under">study {escape(study.name)}</p>']
    body += [
        f"<p>{escape(study.about)}</p>",
        "<ul>",
        *(f"<li>{escape(key)}: {escape(paper)}</li>" for key, paper in study.papers.items()),
        "</ul>",
    ]
    for scale in SCALES:
        if study.at(scale):
            body += _at(folder, study, records, scale)
    write_text(folder / NAME, page(f"{study.title}: study", body))
    return folder / NAME


def _at(folder: pathlib.Path, study: Study, records: Records, scale: str) -> list[str]:
    claims = study.at(scale)
    found = {claim.name: record for claim in claims if (record := current(claim, records, scale)) is not None}
    body = [f"<h2>{escape(scale.capitalize())} scale: {escape(told.counts(study, records, scale))}</h2>"]
    rows = []
    for claim in claims:
        record = found.get(claim.name)
        verdict = told.verdict(claim, records, scale)
        cells = [claim.name, verdict, told.measured(record), told.asked(claim), *told.controls(record)]
        rows.append([*cells, told.theirs(claim), f"{claim.paper}, {claim.source}", told.where(record, scale)])
    caption = (
        "Ours: mean and 95 % interval (Student's t) over replicas. Untrained: the same number of the same models before"
        " training. Null: the control that the study names. Where: scale, device, and the commit that trained them."
    )
    body.append(grid(HEAD, rows, caption, texts=len(HEAD)))
    remarks = [(claim.name, told.remarks(claim, records, scale)) for claim in claims]
    body += [f"<p><em>{escape(name)}</em>: {escape(said)}</p>" for name, said in remarks if said]
    body.append(side_by_side([_drawn(claim, found[claim.name], scale) for claim in claims if claim.name in found]))
    lines = []
    for part in study.parts_at(scale):
        home = pathlib.Path("runs", scale, part.name)
        if (folder / home / NAME).is_file():
            link = escape(urllib.parse.quote(str(home / NAME)))
            lines.append(f'<li><a href="{link}">{escape(part.name)}</a>: {escape(part.config)}</li>')
    return [*body, "<p>Runs that are here:</p><ul>", *lines, "</ul>"] if lines else body


def _drawn(claim: Claim, record: Mapping[str, Any], scale: str) -> str:
    """Replicas as dots, the interval as a bar, the range asked for as a band; controls below."""
    rows = [("ours", record, OURS)]
    rows += [("untrained", record["at_init"], CONTROL)] if record["at_init"] else []
    rows += [("null", record["null_value"], CONTROL)] if record["null_value"] else []
    low, high = claim.holds
    from matplotlib.ticker import MaxNLocator

    def paint(axes: Any) -> None:
        for at, (_, one, color) in enumerate(rows):
            if one["mean"] is None:
                continue
            axes.plot(one["mean"], at, "o", color=color, markersize=6)
            if one["low"] is not None:
                axes.plot([one["low"], one["high"]], [at, at], color=color, linewidth=2)
        values = [value for value in record["values"] if value is not None]
        axes.plot(values, [0] * len(values), "o", color=OURS, markersize=3.5, alpha=0.5, markeredgewidth=0)
        axes.margins(x=0.15)
        shown = [*axes.get_xlim(), *(end for end in claim.holds if not math.isinf(end))]
        left, right = min(shown), max(shown)
        room = 0.05 * (right - left or 1)
        left, right = left - room, right + room
        axes.axvspan(max(low, left), min(high, right), color=RANGE, alpha=0.15, linewidth=0)
        axes.set_xlim(left, right)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.grid(visible=False, axis="y")

    svg = figures.draw(f"{scale}-{claim.name}", claim.says, paint, height=0.55 + 0.35 * len(rows))
    verdict = record["verdict"].capitalize()
    formulas = f"Ours: {record['statistic']}." + (f" Null: {record['null']}." if record["null"] else "")
    caption = f"{claim.name}: {claim.says} {verdict}. Green: {told.asked(claim)}. Dots: replicas. {formulas}"
    return figure(svg, caption)
