"""Figures as SVG text: text as paths, no fonts, scripts or dates, the same bytes for the same numbers.

Curves are lists of summary rows {"position", "mean", "low", "high", ...}. Colours are those of Okabe and Ito, which
stay apart for colour-blind readers; arms also differ in marker. Legends stand above the axes and cover nothing.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from positionbias.reporting.html import escape
from positionbias.spec import ConfigError

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#222222",
)  # fmt: skip
GREY, PALE = "#777777", "#F2C879"
ARMS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LINES = ("-", "--", ":")  # of the first seven, the next, and the last
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p")
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "positionbias",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same shapes
    "font.size": 10.5,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}
WIDTH, HEIGHT = 5.4, 3.5  # inches: small enough that letters are still read when a phone shrinks the figure
LONGEST_LABEL = 52  # letters of a legend's entry
MOST_ARMS = 14  # curves one figure can hold and still be read
FEW = 40  # positions; markers on more would be a smear
LONGEST_TITLE = 34  # letters of a line above a panel
DASH = 7  # widths of the line; of curves that take turns

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One curve of a comparison."""

    label: str
    rows: Rows
    mark: str = ""  # told whole, behind the label

    def within(self, letters: int) -> str:
        """A label of so many letters at most, with the mark."""
        room = letters - len(self.mark)
        return (self.label if len(self.label) <= room else f"{self.label[: room - 1]}…") + self.mark

    @property
    def short(self) -> str:
        """A label that fits into the figure's width, with the mark."""
        return self.within(LONGEST_LABEL)

    @property
    def title(self) -> str:
        """What stands above a panel: the mark on a line of its own where there is no room for both."""
        whole = self.label + self.mark
        if len(whole) <= LONGEST_TITLE or not self.mark:
            return self.within(LONGEST_TITLE)
        return f"{Arm(self.label, ()).within(LONGEST_TITLE)}\n{self.mark.strip()}"


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(
            "report: the figures need matplotlib, which is not installed; install it with 'pip install matplotlib'."
        ) from None
    return matplotlib


def draw(
    name: str, label: str, paint: Any, height: float = HEIGHT, width: float = WIDTH, panels: tuple[int, int] = (1, 1)
) -> str:
    """Paint onto fresh axes and return inline SVG whose ids all start with `name`, unique on a page.

    `paint` gets the axes, an array of rows and columns of them where there are several `panels`.
    """
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(*panels, sharey=True)
        paint(axes)
        handles, labels = axes.get_legend_handles_labels() if panels == (1, 1) else ((), ())
        if handles:
            widest = max(map(len, labels))
            columns = next(n for n, fits in ((4, 9), (3, 16), (2, 28), (1, LONGEST_LABEL)) if widest <= fits)
            figure.legend(handles, labels, loc="outside upper left", ncols=columns)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return _inline(file.getvalue(), name, label)


def _inline(text: str, name: str, label: str) -> str:
    name = re.sub(r"[^\w-]", lambda sign: f"_{ord(sign[0]):x}_", name)  # which may be that of any file
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg" {box[0]} role="img"'
    return re.sub(r"<svg[^>]*>", f'{opening} aria-label="{escape(label)}">', text, count=1)


def column(rows: Rows, key: str) -> np.ndarray:
    """One measure of all rows, nan where there is none."""
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], np.float64)


def curve(
    axes: Any, rows: Rows, color: str, label: str, marker: str = "o", line: Any = "-", turn: tuple[int, int] = (0, 1)
) -> None:
    """A curve with its band; `turn`, which of how many it is that lie on one another."""
    at, of = turn
    if of > 1:
        line = (at * DASH, (DASH, (of - 1) * DASH))
    position, marker = column(rows, "position"), marker if len(rows) <= FEW else ""
    axes.plot(position, column(rows, "mean"), linestyle=line, color=color, marker=marker, markevery=turn, label=label)
    axes.fill_between(position, column(rows, "low"), column(rows, "high"), color=color, alpha=0.18, linewidth=0)


def finish(axes: Any, xlabel: str, ylabel: str) -> None:
    """Names of the axes, whole numbers on that of positions, and a margin."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.margins(x=0.03)


def plain_numbers(axis: Any) -> None:
    """Numbers of a logarithmic scale as numbers, as its own formatter writes TeX, and at 2 and 5 where tens are few."""
    from matplotlib.ticker import LogLocator

    low, high = axis.get_view_interval()
    if high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, at: f"{value:g}")
    axis.set_minor_formatter(lambda value, at: "")


def unit_axis(axes: Any) -> None:
    """The vertical axis of accuracies, the same in every figure."""
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def accuracy(
    name: str,
    xlabel: str,
    rows: Rows,
    at_init: Rows = (),
    theory: Sequence[float | None] | None = None,
    when: str = "measured",
) -> str:
    """Accuracy along one axis with its band, the ceiling, the order-free baseline, the start and the closed form.

    `when` names the curve of `rows`.
    """

    def paint(axes: Any) -> None:
        position = column(rows, "position")
        if theory:
            known = [(x, y) for x, y in enumerate(theory) if y is not None]
            axes.plot(
                *zip(*known, strict=True), "-", color=PALE, linewidth=7, solid_capstyle="round", label="closed form"
            )
        curve(axes, rows, BLUE, when)
        for key, style, color, label in (
            ("ceiling", "--", BLACK, "ceiling"),
            ("baseline", ":", GREY, "order-free guess"),
        ):
            if np.isfinite(column(rows, key)).any():
                axes.plot(position, column(rows, key), style, color=color, linewidth=1.4, label=label)
        if at_init:
            curve(axes, at_init, SKY, "before training", marker="", line="-.")
        unit_axis(axes)
        finish(axes, xlabel, "accuracy")

    return draw(name, f"accuracy by {xlabel}", paint)


def losses(
    name: str,
    xlabel: str,
    rows: Rows,
    at_init: Rows = (),
    rules: Mapping[str, float] | None = None,
    when: str = "measured",
) -> str:
    """Loss along one axis with its band, the floor, the means of simple rules and, where it fits, the start.

    A long axis is logarithmic: that is where the loss of text falls.
    """

    def paint(axes: Any) -> None:
        position = column(rows, "position")
        long = len(rows) > FEW and position[0] >= 0
        shift = int(long and position[0] == 0)  # a logarithmic axis has no zero
        moved = [[{**row, "position": row["position"] + shift} for row in some] for some in (rows, at_init)]
        curve(axes, moved[0], BLUE, when)
        if np.isfinite(column(rows, "floor")).any():
            axes.plot(position + shift, column(rows, "floor"), "--", color=BLACK, linewidth=1.4, label="floor")
        for i, (rule, value) in enumerate((rules or {}).items()):
            axes.axhline(value, linestyle=":", color=ARMS[(i + 1) % len(ARMS)], linewidth=1.4, label=rule)
        if at_init:
            curve(axes, moved[1], SKY, "before training", marker="", line="-.")
        axes.set_ylim(bottom=0)
        finish(axes, f"{xlabel} + 1" if shift else xlabel, "loss")
        if long:
            axes.set_xscale("log")
            plain_numbers(axes.xaxis)

    return draw(name, f"loss by {xlabel}", paint)


def influence(
    name: str, rows: Rows, at_init: Rows = (), when: str = "after training", even: Sequence[float] = ()
) -> str:
    """Share of the influence on the answer that each input position has, at the start and `when` rows were made, and
    by `even` attention."""

    def paint(axes: Any) -> None:
        if rows:
            curve(axes, rows, BLUE, when, marker="o")
        if at_init:
            curve(axes, at_init, SKY, "before training", marker="", line="-.")
        if even:
            axes.plot(range(len(even)), even, ":", color=BLACK, label="even attention")
        axes.set_ylim(bottom=0)
        finish(axes, "input position", "share of influence")

    return draw(name, "influence by input position", paint)


def height_for(named: int) -> float:
    """That of a figure with so many lines of a legend."""
    return HEIGHT + 0.2 * max(0, named - 3)


def loss(
    name: str, metrics: Sequence[Mapping[str, Any]], combinations: Sequence[tuple[Arm, Sequence[int]]] = ()
) -> str:
    """Training loss of every replica over steps; a log scale where it falls by more than a factor of ten.

    Of replicas that differ in hyperparameters those of one combination have one colour.
    """
    lines = [line for line in metrics if "step" in line and "loss" in line]
    steps = [line["step"] for line in lines]
    values = np.array([np.atleast_1d(np.array(line["loss"], np.float64)) for line in lines])  # [lines, R]

    groups = combinations or [(Arm(f"replica {r}", ()), [r]) for r in range(values.shape[1])]
    named = len(groups) <= (MOST_ARMS if combinations else 6)

    def paint(axes: Any) -> None:
        marker = "" if len(steps) > 1 else "o"  # a line of one point is nothing
        for i, (arm, replicas) in enumerate(groups):
            look = {"color": ARMS[i % len(ARMS)], "linestyle": LINES[i // len(ARMS) % len(LINES)], "marker": marker}
            for r in (r for r in replicas if r in range(values.shape[1])):
                label = arm.short if named and r == replicas[0] else None
                axes.plot(steps, values[:, r], **look, linewidth=1.2, alpha=0.9, label=label)
        known = values[np.isfinite(values)]
        if len(known) and known.min() > 0 and known.max() > 10 * known.min():
            axes.set_yscale("log")
            plain_numbers(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        finish(axes, "training step", "loss")

    return draw(name, "training loss by step", paint, height_for(len(groups) if combinations and named else 0))


def by_layer(
    name: str,
    label: str,
    xlabel: str,
    curves: Mapping[str, Rows],
    at_init: Mapping[str, Rows],
    beside: Sequence[Mapping[str, Rows]] = (),
) -> str:
    """A curve for every layer along one axis, and before training the same one pale.

    The vertical axis has room for the curves `beside` it too, of other figures that are to be compared by eye.
    """
    bounds = ("mean", "low", "high")
    room = [row.get(at) for some in beside for rows in some.values() for row in rows for at in bounds]

    def paint(axes: Any) -> None:
        for i, (layer, rows) in enumerate(curves.items()):
            color = ARMS[i % len(ARMS)]
            curve(axes, rows, color, layer or "trained", marker=MARKERS[i % len(MARKERS)])
            before = at_init.get(layer, ())
            axes.plot(column(before, "position"), column(before, "mean"), "--", color=color, alpha=0.45, linewidth=1.2)
        start = next(iter(curves.values()))[0]["position"]
        axes.update_datalim([(start, y) for y in room if y is not None])
        axes.autoscale_view()
        finish(axes, xlabel.replace("_", " "), label.rpartition(": ")[2])

    return draw(name, label, paint)
