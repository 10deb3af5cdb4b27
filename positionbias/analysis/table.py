"""What an analysis found as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from positionbias import spec
from positionbias.analysis.run import Asked, across
from positionbias.evaluation.statistics import interval

MOST = 64  # numbers of an array in the terminal; all are in the files
LARGEST = 3  # numbers that are told of a larger one


def table(found: Asked) -> str:
    """Every number with its interval, arrays of at most 64 by their means, a line a row; and before training.

    Of larger ones the three numbers that are furthest from 0 are told, and where they stand.
    """
    lines = [spec.canonical(found.analysis)]
    for name, axes in found.analysis.axes.items():
        trained = found.trained[name]
        sizes = trained.shape[1:]
        if trained[0].size > MOST:
            shape = " x ".join(f"{n} {axis}s" for n, axis in zip(sizes, axes, strict=True))
            lines.append(f"  {name}: {shape}, {_largest(found, name, axes)}")
            continue
        both = (trained, found.drawn[name])
        if not axes:
            now, before = (_told(interval(list(map(float, x))).to_dict()) for x in both)
            lines.append(f"  {name}: {now}, before training {before}")
            continue
        flat = [np.mean(x, axis=0).reshape(-1, sizes[-1]) for x in both]
        labels = _labels(found, axes[-1])
        for place, now, before in zip(np.ndindex(*sizes[:-1]), *flat, strict=True):
            named = [f" {axis} {found.named(axis, at)}" for axis, at in zip(axes[:-1], place, strict=False)]
            where = f" of{','.join(named)}" if named else ""
            lines.append(f"  {name}{where}: {_means(now, labels)}; before training {_means(before)}")
    for name, told in across(found).items():
        lines.append(f"  {name}: {_told(told['numbers'][0])}, before training {_told(told['at_init'][0])}")
    return "\n".join(lines)


def _labels(found: Asked, axis: str) -> Sequence[str] | None:
    """What stands before each number of a line; None where they are all the layers, one after the other."""
    told = found.labels.get(axis)
    if told is None or (axis == "layer" and list(told) == list(map(str, range(len(told))))):
        return None
    return [f"{axis} {one}" if one.isdigit() else one for one in told]


def _largest(found: Asked, name: str, axes: Sequence[str]) -> str:
    """The numbers furthest from 0, largest first, and where they stand."""
    values, before = (np.mean(x[name], axis=0) for x in (found.trained, found.drawn))
    sizes = np.where(np.isfinite(values), np.abs(values), -1.0)
    told = []
    for place in np.argsort(-sizes, axis=None, kind="stable")[:LARGEST]:
        at = tuple(int(i) for i in np.unravel_index(place, values.shape))
        named = ", ".join(f"{axis} {found.named(axis, i)}" for axis, i in zip(axes, at, strict=True))
        told.append(f"{values[at]:.3f} at {named} (before training {before[at]:.3f})")
    return f"largest {'; '.join(told)}"


def _means(values: np.ndarray, labels: Sequence[str] | None = None) -> str:
    told = [f"{value:.3f}" for value in values]
    return " ".join(told) if labels is None else ", ".join(f"{name} {x}" for name, x in zip(labels, told, strict=True))


def _told(one: Mapping[str, Any]) -> str:
    if one["mean"] is None:
        return "nothing"
    return f"{one['mean']:.3f}" + ("" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]")
