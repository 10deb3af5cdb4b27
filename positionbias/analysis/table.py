"""What an analysis found as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from positionbias import spec
from positionbias.analysis.run import Asked
from positionbias.evaluation.statistics import interval

MOST = 12  # numbers of an array in the terminal; all are in the files


def table(found: Asked) -> str:
    """Every array of at most 12 numbers in a line each, with those of the models as they were drawn behind."""
    lines = [spec.canonical(found.analysis)]
    for name, axes in found.analysis.axes.items():
        trained = found.trained[name]
        sizes = trained.shape[1:]
        if trained[0].size > MOST:
            lines.append(f"  {name}: {' x '.join(f'{n} {axis}s' for n, axis in zip(sizes, axes, strict=True))}")
            continue
        for place in np.ndindex(*sizes):
            numbers = dict(zip(axes, place, strict=True)) | _layer(found, axes, place)
            where = " ".join(f"{axis} {at}" for axis, at in numbers.items())
            both = (_told(interval(list(map(float, x[:, *place]))).to_dict()) for x in (trained, found.drawn[name]))
            lines.append(f"  {name}{f' of {where}' if where else ''}: {next(both)}, before training {next(both)}")
    return "\n".join(lines)


def _layer(found: Asked, axes: tuple[str, ...], place: tuple[int, ...]) -> dict[str, int]:
    return {"layer": found.layers[place[axes.index("layer")]]} if "layer" in axes else {}


def _told(one: Mapping[str, Any]) -> str:
    if one["mean"] is None:
        return "nothing"
    return f"{one['mean']:.3f}" + ("" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]")
