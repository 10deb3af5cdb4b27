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

    Each mean has the name of its head, layer or the like, with that before training behind it in brackets. Of larger
    arrays the three numbers that are furthest from 0 are told, and where they stand.
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
        last = [_named(axes[-1], found.named(axes[-1], at)) for at in range(sizes[-1])]
        for place, now, before in zip(np.ndindex(*sizes[:-1]), *flat, strict=True):
            where = ", ".join(f"{axis} {found.named(axis, at)}" for axis, at in zip(axes, place, strict=False))
            lines.append(f"  {name}{f' of {where}' if where else ''}: {_means(last, now, before)}")
    for name, told in across(found).items():
        lines.append(f"  {name}: {_told(told['numbers'][0])}, before training {_told(told['at_init'][0])}")
    return "\n".join(lines)


def _named(axis: str, one: str) -> str:
    """`head 3`, `random`: a number with its axis, a name as it is."""
    return f"{axis} {one}" if one.lstrip("-").replace(".", "", 1).isdigit() else one


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


def _means(names: Sequence[str], now: np.ndarray, before: np.ndarray) -> str:
    """`head 0 0.260 (before training 0.210), head 1 0.200 (0.210)`."""
    said = ["before training ", *[""] * (len(names) - 1)]  # once a line
    each = zip(names, now, said, before, strict=True)
    return ", ".join(f"{name} {x:.3f} ({word}{y:.3f})" for name, x, word, y in each)


def _told(one: Mapping[str, Any]) -> str:
    if one["mean"] is None:
        return "nothing"
    return f"{one['mean']:.3f}" + ("" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]")
