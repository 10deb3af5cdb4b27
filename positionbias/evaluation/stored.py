"""Reading JSON of run and sweep folders back, checked: a file that was damaged or edited is named, with the place.

A shape says what a value may be: `int`, `float` (any finite number), `str`, `bool`, `dict` or `None`; a tuple of
alternatives, so that `()` is nothing; `[shape]` a list, `[shape, ...]` one that is not empty; or shapes by key. A key
that ends in "?" may be missing, `str` stands for every key that is not named, and without it those are let through.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from typing import Any

from positionbias.evaluation.rows import CHANGED
from positionbias.evaluation.statistics import INDICES
from positionbias.files import read_json
from positionbias.spec import ConfigError

LARGEST = {int: 2**53, float: 1e300}  # that figures can still scale
NUMBER = (float, None)


def misfit(value: Any, shape: Any, name: str = "") -> str | None:
    """The place in `value` that is not as `shape` wants it, as `name.key[0]`; None if all of it is."""
    if isinstance(shape, tuple):
        return None if any(misfit(value, one) is None for one in shape) else name
    if isinstance(shape, list):
        if type(value) is not list or (len(shape) == 2 and not value):
            return name
        places = (misfit(one, shape[0], f"{name}[{i}]") for i, one in enumerate(value))
    elif isinstance(shape, dict):
        if type(value) is not dict:
            return name
        named = {key.removesuffix("?"): inner for key, inner in shape.items() if key is not str}
        missing = next((key for key in shape if key is not str and key not in value and not key.endswith("?")), None)
        if missing is not None:
            return f"{name}.{missing}".lstrip(".")
        shapes = {key: named.get(key, shape.get(str)) for key in value if key in named or str in shape}
        places = (misfit(value[key], inner, f"{name}.{key}".lstrip(".")) for key, inner in shapes.items())
    elif shape in LARGEST:
        kinds = (int, float) if shape is float else (int,)
        return None if type(value) in kinds and abs(value) <= LARGEST[shape] else name
    else:
        return None if type(value) is (type(None) if shape is None else shape) else name
    return next((place for place in places if place is not None), None)


def read(path: pathlib.Path, shape: Any) -> dict[str, Any]:
    """The JSON object in `path`, {} where there is none; ConfigError if it cannot be read or is not of `shape`."""
    if not path.exists():
        return {}
    try:
        value = read_json(path)
    except (OSError, ValueError):
        value = None
    place = misfit(value, shape)
    if place is not None and not path.exists():  # a run that goes on has just deleted it
        return {}
    if place is not None:
        what = f"is damaged at {place!r}" if place else "cannot be read as a JSON object"
        raise ConfigError(f"workdir: {str(path)!r} {what}; allowed: the file as it was written, or none.")
    return value


# ----------------------------------------------------------------------------------------------------- summary.json


def _interval(**more: Any) -> Any:
    """A mean with both of its bounds, or with none."""
    return (
        {"mean": float, "low": float, "high": float, **more},
        {"mean": NUMBER, "low": None, "high": None, **more},
    )


_PLACES = [_interval(position=int)]
_CEILING = {"mean": NUMBER, "replicas": [NUMBER, ...], "known": float, "accuracy": NUMBER}
_ROW = {
    "position": int,
    "count": int,
    "ceiling": NUMBER,
    "ceiling_known": float,
    "baseline": NUMBER,
    "log_probability": _interval(),
}
_ROWS = [_interval(**_ROW, **{"loss?": _interval(floor=NUMBER)}), ...]
_INDICES = {"axis": str, **dict.fromkeys(INDICES, _interval())}
_BELOW = {**_INDICES, "ceiling_minus_accuracy": dict.fromkeys(INDICES, _interval())}
_ACCURACY = _interval(
    replicas=[NUMBER, ...], solved=NUMBER, verdict=(str, None), deviation={"mean": NUMBER, "replicas": [NUMBER, ...]}
)
_CURVES = {"by_query_position": _ROWS, "by_evidence_position": _ROWS, "by_distance": _ROWS, "influence": _PLACES}
_MEASURES = {
    **_CURVES,
    "accuracy": _ACCURACY,
    "log_probability": _interval(),
    "ceiling": _CEILING,
    "baselines": {"order_free": NUMBER, str: NUMBER},
    "loss?": _interval(replicas=[NUMBER, ...], floor=NUMBER, rules={str: NUMBER}),
    "answers": int,
    "indices": {"query_position": _BELOW, "evidence_position": _BELOW, "distance": _BELOW, "influence?": _INDICES},
    "order_gap": (
        _interval(first=int, second=int, above_chance=_interval(), by_order=[_interval(order=int, count=int)]),
        {str: ()},
    ),
    **{f"{name}?": _interval() for name in CHANGED},
    "collinear": bool,
}
_PREDICTION = {"name": str, "of": str, "value": float, "exact": bool, "condition": str}
SUMMARY = {
    **_MEASURES,
    "by_condition": {str: _MEASURES},
    "paired?": {
        str: _interval(
            replicas=[NUMBER, ...], conditions=[str, ...], differences=[_interval(first=str, second=str), ...]
        )
    },
    "at_init": {f"{name}?": curve for name, curve in _CURVES.items()},
    "axes": {"query": str, "evidence": str},
    "steps": (int, None),
    "of": (int, None),
    "state_size?": (int, None),
    "note": (str, None),
    "theory": {
        "query?": [float],
        "evidence?": [float],
        "mean?": float,
        "predictions?": [_PREDICTION],
        "influence?": [float],
    },
}
_MINUS = _interval(variant=str, by_condition={str: _interval()})
SUMMARY["combinations?"] = [{**SUMMARY, "values": {str: (float, int)}, "members": [int, ...], "minus?": _MINUS}]


_STORED = {"items": int, "folder": str}
AGAIN = {**SUMMARY, "task": str, "variant?": str, "minus?": _MINUS, "stored?": _STORED}


def read_again(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The summaries of `positionbias.evaluate` in a run folder by label, the newest last. Raises ConfigError."""
    found = []
    for path in (folder / "evals").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # one that has just been deleted
            if not path.stem.isdecimal():
                found.append((path.stat().st_mtime_ns, path.name, path))
    read_all = {path.stem: read(path, AGAIN) for *_, path in sorted(found)}
    return {name: one for name, one in read_all.items() if one}


_ARRAY = {"axes": [str], "sizes": [int], "numbers?": [_interval(), ...], "at_init?": [_interval(), ...]}
ANALYSIS = {
    "analysis": str,
    "about?": str,
    "step": int,
    "condition": str,
    "items": int,
    "of_replicas?": (str, [int, ...]),
    "shown": str,
    "labels": {"layer": [str, ...], str: [str, ...]},
    "replicas": int,
    "arrays": {str: _ARRAY},
}


def read_analyses(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What `positionbias.analyze` found in a run folder, by the names of its files in their order. Raises ConfigError.

    Of every array with numbers there are as many as its sizes say, of both models, and labels as there are places.
    """
    read_all = {path.stem: read(path, ANALYSIS) for path in sorted((folder / "analysis").glob("*.json"))}
    found = {name: one for name, one in read_all.items() if one}  # but for those that have just been deleted
    for name, one in found.items():
        for key, array in one["arrays"].items():
            counts = {len(array[told]) for told in ("numbers", "at_init") if told in array}
            sizes = dict(zip(array["axes"], array["sizes"], strict=False))
            astray = any(len(one["labels"][axis]) != size for axis, size in sizes.items() if axis in one["labels"])
            astray |= ("numbers" in array) != ("at_init" in array)
            if astray or len(array["axes"]) != len(array["sizes"]) or counts - {math.prod(array["sizes"])}:
                path, place = str(folder / "analysis" / f"{name}.json"), f"arrays.{key}"
                allowed = "the file as it was written, or none"
                raise ConfigError(f"workdir: {path!r} is damaged at {place!r}; allowed: {allowed}.")
    return found


def read_summary(path: pathlib.Path) -> dict[str, Any]:
    """A `summary.json` as `summarise` made it, {} where there is none. Raises ConfigError."""
    summary = read(path, SUMMARY)
    for one in [summary, *summary.get("combinations", [])] if summary else []:
        if len(one["accuracy"]["replicas"]) != len(one["ceiling"]["replicas"]):
            told = f"{str(path)!r} is damaged at 'ceiling.replicas'; allowed: the file as it was written, or none."
            raise ConfigError(f"workdir: {told}")
    return summary
