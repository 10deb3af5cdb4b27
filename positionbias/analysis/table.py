"""What an analysis found as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from positionbias import spec
from positionbias.analysis.run import Asked, across
from positionbias.evaluation.statistics import interval

MOST = 64  # numbers of an array in the terminal; all are in the files


def table(found: Asked) -> str:
    """Every number with its interval, arrays of at most 64 by their means, a line a row; and before training."""
    lines = [spec.canonical(found.analysis)]
    for name, axes in found.analysis.axes.items():
        trained = found.trained[name]
        sizes = trained.shape[1:]
        if trained[0].size > MOST:
            lines.append(f"  {name}: {' x '.join(f'{n} {axis}s' for n, axis in zip(sizes, axes, strict=True))}")
            continue
        both = (trained, found.drawn[name])
        if not axes:
            now, before = (_told(interval(list(map(float, x))).to_dict()) for x in both)
            lines.append(f"  {name}: {now}, before training {before}")
            continue
        flat = [np.mean(x, axis=0).reshape(-1, sizes[-1]) for x in both]
        labels = found.labels.get(axes[-1]) if axes[-1] != "layer" else None
        for place, now, before in zip(np.ndindex(*sizes[:-1]), *flat, strict=True):
            named = [f" {axis} {found.named(axis, at)}" for axis, at in zip(axes[:-1], place, strict=False)]
            where = f" of{','.join(named)}" if named else ""
            lines.append(f"  {name}{where}: {_means(now, labels)}; before training {_means(before)}")
    for name, told in across(found).items():
        lines.append(f"  {name}: {_told(told['numbers'][0])}, before training {_told(told['at_init'][0])}")
    return "\n".join(lines)


def _means(values: np.ndarray, labels: Sequence[str] | None = None) -> str:
    told = [f"{value:.3f}" for value in values]
    return " ".join(told) if labels is None else ", ".join(f"{name} {x}" for name, x in zip(labels, told, strict=True))


def _told(one: Mapping[str, Any]) -> str:
    if one["mean"] is None:
        return "nothing"
    return f"{one['mean']:.3f}" + ("" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]")
