"""The raw rows of one evaluation, `evals/STEP.npz`: one entry per answer, plus the influence profile.

Rows are a plain dict. Columns, 1-D and of one length: `replica`, `condition` (index into `conditions`), `query` (row
that answers), `evidence` (token index of the evidence that holds the answer), `query_slot`, `evidence_slot` (the same
two on the task's own axes), `distance` (signed), `order`, `correct` (0 or 1), `log_probability`, `ceiling` (probability
that the ideal observer is right on this very item, nan where none is known) and one `baseline/NAME` a simple rule
(probability that it is right), among them always `baseline/chance` and `baseline/order_free`; under an intervention
also 0 or 1, whether the answer is another than without it: `order_sensitivity` where segments change places with the
same right answers, else `answers_changed`. Where losses are measured also `loss` (that of the answer) and one
`loss/NAME` for what the task says of it, `loss/floor` the least that can be expected.
Beside the columns: `conditions` (names), `influence` f32[R, C, T] padded with nan, `axes`: the labels
{"query": ..., "evidence": ...}, and where conditions have the same items, in the same order, `items`: a name for those
of every condition.
"""

from __future__ import annotations

import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from positionbias.files import refuse_unread, replacing, writing
from positionbias.spec import ConfigError

INTEGERS = ("replica", "condition", "query", "evidence", "query_slot", "evidence_slot", "distance", "order")
REAL = ("correct", "log_probability", "ceiling")
BASELINE = "baseline/"
ORDER_SENSITIVITY, ANSWERS_CHANGED = CHANGED = ("order_sensitivity", "answers_changed")  # under an intervention
LOSS = "loss"  # of vectors, and where a task is `by_loss`; under it what the task holds it against
REQUIRED = (*INTEGERS, *REAL, "baseline/chance", "baseline/order_free")

Rows = Mapping[str, Any]


def columns(rows: Rows) -> dict[str, np.ndarray]:
    """The columns of `rows`, checked: all that are required, 1-D, of one length. Raises ValueError."""
    more = (n for n in rows if n not in REQUIRED and (n.startswith((BASELINE, f"{LOSS}/")) or n in (*CHANGED, LOSS)))
    names = [*REQUIRED, *sorted(more)]
    missing = [name for name in (*names, "conditions") if name not in rows]
    if missing:
        raise ValueError(f"rows lack {', '.join(missing)}")
    found = {name: np.asarray(rows[name]) for name in names}
    shapes = {name: column.shape for name, column in found.items()}
    if len(set(shapes.values())) != 1 or found["replica"].ndim != 1:
        raise ValueError(f"columns must be 1-D and of one length, got {shapes}")
    return found


def of_replicas(rows: Rows, replicas: Sequence[int]) -> dict[str, Any]:
    """The rows of some replicas, which are in ascending order and numbered anew."""
    found = columns(rows)
    chosen, influence = np.isin(found["replica"], replicas), np.asarray(rows.get("influence", ()))
    part = {name: column[chosen] for name, column in found.items()}
    part["replica"] = np.searchsorted(replicas, part["replica"])
    return {**rows, **part, "influence": influence[list(replicas)] if influence.size else np.zeros((0, 0, 0))}


def _compact(name: str, column: np.ndarray) -> np.ndarray:
    if name not in INTEGERS:
        return column.astype(np.uint8 if name in ("correct", *CHANGED) else np.float32)
    low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
    return column.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)))


def write_rows(path: str | os.PathLike, rows: Rows) -> None:
    """Write rows to `path`, compressed, in the smallest types that hold them; a reader never sees half a file.

    Raises WriteError.
    """
    path = pathlib.Path(path)
    arrays = {name: _compact(name, column) for name, column in columns(rows).items()}
    labels = rows.get("axes", {})
    arrays["conditions"] = np.array(list(rows["conditions"]), np.str_)
    arrays["axes"] = np.array([labels.get("query", "query position"), labels.get("evidence", "evidence position")])
    arrays["influence"] = np.asarray(rows.get("influence", np.zeros((0, 0, 0))), np.float32)
    items = list(rows.get("items", ()))
    if len(set(items)) < len(items):
        arrays["items"] = np.array(items, np.str_)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_rows(path: str | os.PathLike) -> dict[str, Any]:
    """The rows in `path`; `conditions` is a list and `axes` a dict again.

    Raises ConfigError if it does not hold them, FileError if the machine cannot read it now.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            rows: dict[str, Any] = dict(file)
        columns(rows)
        rows["conditions"] = [str(name) for name in rows["conditions"]]
        if "items" in rows:
            rows["items"] = [str(name) for name in rows["items"]]
        rows["axes"] = dict(zip(("query", "evidence"), (str(a) for a in rows["axes"]), strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        refuse_unread(pathlib.Path(path), getattr(error, "errno", None))
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"evals: {str(path)!r} does not hold the rows of an evaluation ({reason}).") from None
    return rows
