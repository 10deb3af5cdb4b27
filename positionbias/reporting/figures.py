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
FEW = 40  # positions; markers on more would be a smear
PANELS = 4  # side by side
LONGEST_TITLE = 34  # letters above a panel
LEAST_SHARE = 1e-3  # of an even share of influence: what has less is not drawn

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


def _column(rows: Rows, key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], np.float64)


def _curve(axes: Any, rows: Rows, color: str, label: str, marker: str = "o", line: str = "-") -> None:
    position = _column(rows, "position")
    axes.plot(
        position, _column(rows, "mean"), line, color=color, marker=marker if len(rows) <= FEW else "", label=label
    )
    axes.fill_between(position, _column(rows, "low"), _column(rows, "high"), color=color, alpha=0.18, linewidth=0)


def _finish(axes: Any, xlabel: str, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.margins(x=0.03)


def _plain(axis: Any) -> None:
    """Numbers of a logarithmic scale as numbers, as its own formatter writes TeX, and at 2 and 5 where tens are few."""
    from matplotlib.ticker import LogLocator

    low, high = axis.get_view_interval()
    if high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, at: f"{value:g}")
    axis.set_minor_formatter(lambda value, at: "")


def _unit(axes: Any) -> None:
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
        position = _column(rows, "position")
        if theory:
            known = [(x, y) for x, y in enumerate(theory) if y is not None]
            axes.plot(
                *zip(*known, strict=True), "-", color=PALE, linewidth=7, solid_capstyle="round", label="closed form"
            )
        _curve(axes, rows, BLUE, when)
        for key, style, color, label in (
            ("ceiling", "--", BLACK, "ceiling"),
            ("baseline", ":", GREY, "order-free guess"),
        ):
            if np.isfinite(_column(rows, key)).any():
                axes.plot(position, _column(rows, key), style, color=color, linewidth=1.4, label=label)
        if at_init:
            _curve(axes, at_init, SKY, "before training", marker="", line="-.")
        _unit(axes)
        _finish(axes, xlabel, "accuracy")

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
        position = _column(rows, "position")
        long = len(rows) > FEW and position[0] >= 0
        shift = int(long and position[0] == 0)  # a logarithmic axis has no zero
        moved = [[{**row, "position": row["position"] + shift} for row in some] for some in (rows, at_init)]
        _curve(axes, moved[0], BLUE, when)
        if np.isfinite(_column(rows, "floor")).any():
            axes.plot(position + shift, _column(rows, "floor"), "--", color=BLACK, linewidth=1.4, label="floor")
        for i, (rule, value) in enumerate((rules or {}).items()):
            axes.axhline(value, linestyle=":", color=ARMS[(i + 1) % len(ARMS)], linewidth=1.4, label=rule)
        if at_init:
            _curve(axes, moved[1], SKY, "before training", marker="", line="-.")
        axes.set_ylim(bottom=0)
        _finish(axes, f"{xlabel} + 1" if shift else xlabel, "loss")
        if long:
            axes.set_xscale("log")
            _plain(axes.xaxis)

    return draw(name, f"loss by {xlabel}", paint)


def influence(name: str, rows: Rows, at_init: Rows = (), when: str = "after training") -> str:
    """Share of the influence on the answer that each input position has, at the start and `when` rows were made."""

    def paint(axes: Any) -> None:
        if rows:
            _curve(axes, rows, BLUE, when, marker="o")
        if at_init:
            _curve(axes, at_init, SKY, "before training", marker="", line="-.")
        axes.set_ylim(bottom=0)
        _finish(axes, "input position", "share of influence")

    return draw(name, "influence by input position", paint)


def loss(name: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Training loss of every replica over steps; a log scale where it falls by more than a factor of ten."""
    lines = [line for line in metrics if "step" in line and "loss" in line]
    steps = [line["step"] for line in lines]
    values = np.array([np.atleast_1d(np.array(line["loss"], np.float64)) for line in lines])  # [lines, R]

    def paint(axes: Any) -> None:
        marker = "" if len(steps) > 1 else "o"  # a line of one point is nothing
        for r in range(values.shape[1]):
            label = f"replica {r}" if values.shape[1] <= 6 else None
            axes.plot(
                steps, values[:, r], color=ARMS[r % len(ARMS)], linewidth=1.2, alpha=0.9, marker=marker, label=label
            )
        known = values[np.isfinite(values)]
        if len(known) and known.min() > 0 and known.max() > 10 * known.min():
            axes.set_yscale("log")
            _plain(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        _finish(axes, "training step", "loss")

    return draw(name, "training loss by step", paint)


def by_state_size(name: str, curves: Mapping[str, Rows]) -> str:
    """Accuracy over the numbers that a model keeps, a curve for each kind of model; rows tell these as their position.

    From the eighth curve on colours come again, with dashes and with other markers.
    """

    def paint(axes: Any) -> None:
        for i, (label, rows) in enumerate(curves.items()):
            color, marker = ARMS[i % len(ARMS)], MARKERS[i % len(MARKERS)]
            line = ("-", "--", ":")[i // len(ARMS) % 3]
            mean, low, high = (_column(rows, key) for key in ("mean", "low", "high"))
            known = np.isfinite(low)
            position = _column(rows, "position")
            axes.plot(position, mean, line, color=color, marker=marker, label=Arm(label, rows).short)
            axes.vlines(position[known], low[known], high[known], color=color, linewidth=1.2, alpha=0.6)
        axes.set_xscale("log")
        _unit(axes)
        axes.set_xlabel("numbers kept of what came before")
        axes.set_ylabel("accuracy")
        _plain(axes.xaxis)
        axes.margins(x=0.03)

    return draw(name, "accuracy by size of the state", paint, HEIGHT + 0.2 * max(0, len(curves) - 3))


def arms(name: str, xlabel: str, compared: Sequence[Arm]) -> str:
    """The curves of a sweep's arms along one axis, each with its ceiling dashed in its own colour."""

    def paint(axes: Any) -> None:
        known = False
        for i, arm in enumerate(compared):
            color, marker = ARMS[i % len(ARMS)], MARKERS[i % len(MARKERS)]
            _curve(axes, arm.rows, color, arm.short, marker=marker)
            ceiling = _column(arm.rows, "ceiling")
            if np.isfinite(ceiling).any():
                dash = (4 * i, (4, 6))  # offset, so that equal ceilings show every colour
                axes.plot(_column(arm.rows, "position"), ceiling, linestyle=dash, color=color, linewidth=1.5, zorder=3)
                known = True
        if known:
            axes.plot([], [], "--", color=GREY, linewidth=1.5, label="ceiling")
        _unit(axes)
        _finish(axes, xlabel, "accuracy")

    return draw(name, f"accuracy by {xlabel}, one curve an arm", paint, HEIGHT + 0.2 * max(0, len(compared) - 3))


def influences(name: str, compared: Sequence[Arm], at_init: Mapping[str, Rows]) -> str:
    """The influence by input position of a sweep's arms, a panel each, in shares of which every position has one if
    all matter alike; `at_init` has the curves before training by the arm's label.

    The scale is logarithmic and ends at a thousandth of such a share.
    """
    lines = -(-len(compared) // PANELS)

    def paint(axes: Any) -> None:
        panels = np.ravel(axes)
        for panel, arm in zip(panels, compared, strict=False):
            panel.axhline(1, linestyle="--", color=GREY, linewidth=1)
            for rows, color, line in ((arm.rows, BLUE, "-"), (at_init.get(arm.label, ()), SKY, "-.")):
                _curve(panel, _even_shares(rows), color, "", marker=".", line=line)
            panel.set_title(arm.within(LONGEST_TITLE), fontsize=9)
            panel.set_xlim(-0.03 * len(arm.rows), 1.03 * len(arm.rows) - 1)  # also where only few points are drawn
            panel.set_yscale("log")
            _plain(panel.yaxis)
            _finish(panel, "", "")
        panels[0].set_ylim(bottom=max(LEAST_SHARE, panels[0].get_ylim()[0]))
        for panel in panels[len(compared) :]:
            panel.set_visible(False)
        panels[0].figure.supxlabel("input position", fontsize="medium")
        panels[0].figure.supylabel("influence, in even shares", fontsize="medium")

    label = "influence by input position, one panel an arm"
    return draw(name, label, paint, 0.8 + 1.5 * lines, 2 * WIDTH, (lines, PANELS))


def _even_shares(rows: Rows) -> Rows:
    """Rows of the influence times their number; none where a logarithmic axis has no place for it."""
    bounds = ("mean", "low", "high")
    return [{**row, **{at: len(rows) * row[at] if (row[at] or 0) > 0 else None for at in bounds}} for row in rows]


def by_layer(name: str, label: str, xlabel: str, curves: Mapping[str, Rows], at_init: Mapping[str, Rows]) -> str:
    """A curve for every layer along one axis, and before training the same one pale."""

    def paint(axes: Any) -> None:
        for i, (layer, rows) in enumerate(curves.items()):
            color = ARMS[i % len(ARMS)]
            _curve(axes, rows, color, layer or "trained", marker=MARKERS[i % len(MARKERS)])
            before = at_init.get(layer, ())
            axes.plot(
                _column(before, "position"), _column(before, "mean"), "--", color=color, alpha=0.45, linewidth=1.2
            )
        _finish(axes, xlabel.replace("_", " "), label.rpartition(": ")[2])

    return draw(name, label, paint)
