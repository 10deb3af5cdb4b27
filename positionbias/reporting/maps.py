"""Maps of two axes: a number for every row and column, trained beside before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from positionbias.reporting.figures import BLACK, draw

FEW = 40  # cells with a number in them
MOST = (48, 24)  # names of rows and of columns
SMALL = 6  # points of names where there are many
LETTERS = 24  # below one map, beside each other, where names are not small


def _range(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest of what is finite, with 0 between them."""
    known = values[np.isfinite(values)]
    return (min(0.0, known.min()), max(known.max(), 1e-9)) if len(known) else (0.0, 1.0)


def two_maps(
    name: str,
    label: str,
    trained: np.ndarray,
    drawn: np.ndarray,
    axes_told: Sequence[str],
    ticks: Sequence[Sequence[str]],
    beside: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> str:
    """Two maps on one scale: trained, and before training. `ticks` are those of rows and columns.

    The scale is also that of the maps `beside` them, trained and before training, which are to be compared by eye.
    Numbers stand in cells if few. If many, a bar tells what colours mean, and the scale is that of the trained models,
    which noise before training may exceed by far.
    """
    pairs = [(trained, drawn), *beside]
    few = max(values.size for values, _ in pairs) <= FEW
    learned = np.concatenate([values.ravel() for values, _ in pairs])
    every = np.concatenate([learned, *(values.ravel() for _, values in pairs)])
    low, high = _range(every)
    signed = -low > 0.1 * high  # losses beside gains: white is 0
    low, high = _range(every if few or not np.any(np.nan_to_num(learned)) else learned)
    if signed:
        low, high = min(low, -high), max(high, -low)

    def paint(axes: Any) -> None:
        for panel, values, title in zip(axes.ravel(), (trained, drawn), ("trained", "before training"), strict=True):
            panel.grid(False)
            image = panel.imshow(values, cmap="RdBu" if signed else "Blues", vmin=low, vmax=high, aspect="auto")
            panel.set_title(title, fontsize=10)
            for told, setter, most in zip(ticks, (panel.set_yticks, panel.set_xticks), MOST, strict=True):
                every = -(-len(told) // most)  # more would run into each other
                setter(range(0, len(told), every), told[::every], fontsize=SMALL if len(told) > 16 else None)
            longest, shown = max(map(len, ticks[1])), min(len(ticks[1]), MOST[1])
            if longest > 5 or longest * shown > (LETTERS if len(ticks[1]) <= 16 else 2 * LETTERS):
                panel.tick_params(axis="x", labelrotation=45 if len(ticks[1]) < 9 else 90)
            panel.set_xlabel(axes_told[1].replace("_", " "))
            if few:
                for (i, j), value in np.ndenumerate(values):
                    dark = abs(value) > 0.6 * high
                    told = f"{round(value, 2) or 0.0:.2f}"  # no minus before a zero
                    panel.text(j, i, told, ha="center", va="center", color="white" if dark else BLACK)
        axes.ravel()[0].set_ylabel(axes_told[0].replace("_", " "))
        if not few:
            beyond = np.nanmin(drawn, initial=low) < low, np.nanmax(drawn, initial=high) > high
            extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(beyond, "both")
            axes.ravel()[0].figure.colorbar(image, ax=axes, location="top", fraction=0.06, aspect=40, extend=extend)

    return draw(
        name,
        label,
        paint,
        height=max(min(5.0, 1.1 + 0.45 * max(2, len(trained))), 1.1 + 0.12 * min(len(trained), MOST[0])),
        panels=(1, 2),
    )
