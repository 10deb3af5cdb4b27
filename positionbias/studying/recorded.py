"""What a formula may read of a run folder: one number a replica, from raw rows or from the arrays of an analysis."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import typing
import zipfile
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from positionbias.arrays import Float
from positionbias.evaluation import stored
from positionbias.evaluation.rows import CHANGED, INTEGERS, columns, read_rows
from positionbias.evaluation.statistics import indices
from positionbias.files import refuse_unread
from positionbias.spec import ConfigError, unknown

Axis = Literal["query", "evidence", "distance"]
Index = Literal["primacy", "recency", "tilt", "middle_dip"]
COLUMNS: dict[Axis, str] = {"query": "query_slot", "evidence": "evidence_slot", "distance": "distance"}
AT_INIT = "at_init/"  # before the names of an analysis' arrays: the same of the model as it was drawn

MANIFEST = {
    "step": int,
    "commit?": (str, None),
    "dirty?": (bool, None),
    "devices?": [str],
    "versions?": {str: (str, None)},
    "seconds?": float,
}

PerReplica = Float[np.ndarray, "R"]


class NotMeasured(Exception):
    """What a formula asks for has no counterpart in an untrained model."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A run folder; of an `initial` one everything is read as it was before training."""

    folder: pathlib.Path
    initial: bool = False

    def rows(self, step: int | None, evals: str | None) -> dict[str, Any]:
        """Raw rows: those of a training step, the last one without, or those that were evaluated as `evals`."""
        if self.initial and evals is not None:
            raise NotMeasured(f"evaluation {evals!r} is of the trained model alone")
        if evals is not None:
            path = self.folder / "evals" / f"{evals}.npz"
            if not path.exists():
                raise unknown("evals", "evaluation", evals, _stems(path.parent))
            return _read(path)
        steps = sorted(int(stem) for stem in _stems(self.folder / "evals") if stem.isdecimal())
        # The last step is the manifest's: were its rows lost, the newest that are left would be of another model.
        last = manifest(self.folder).get("step")
        wanted = 0 if self.initial else step if step is not None else last
        if wanted not in steps:
            told = f"step = {wanted} was not evaluated in {str(self.folder)!r}"
            raise ConfigError(f"{told}; allowed: {', '.join(map(str, steps)) or 'none'}.")
        return _read(self.folder / "evals" / f"{wanted:06d}.npz")


def _stems(folder: pathlib.Path) -> list[str]:
    return [path.stem for path in folder.glob("*.npz")]


def _read(path: pathlib.Path) -> dict[str, Any]:
    return _rows(path, path.stat().st_mtime_ns)  # an evaluation may have been made again since


@functools.lru_cache(maxsize=8)  # a claim reads the same rows several times, and large ones fill a memory
def _rows(path: pathlib.Path, _: int) -> dict[str, Any]:
    return read_rows(path)


# ------------------------------------------------------------------------------------------------------------ measures


def accuracy(run: Recorded, **where: Any) -> PerReplica:
    """Share of answers that are right."""
    return _mean(run, "correct", **where)


def log_probability(run: Recorded, **where: Any) -> PerReplica:
    """Mean log-probability of the right answers, in nats."""
    return _mean(run, "log_probability", **where)


def loss(run: Recorded, **where: Any) -> PerReplica:
    """Mean loss of the answers, where the task has one of its own."""
    return _mean(run, "loss", **where)


def ceiling(run: Recorded, **where: Any) -> PerReplica:
    """Accuracy of the ideal observer on the very items."""
    return _mean(run, "ceiling", **where)


def baseline(run: Recorded, name: str, **where: Any) -> PerReplica:
    """Accuracy of a simple rule on the very items, as `chance` or `order_free`."""
    return _mean(run, f"baseline/{name}", **where)


def changed(run: Recorded, **where: Any) -> PerReplica:
    """Share of answers that an intervention changed."""
    names = [name for name in CHANGED if name in _chosen(run, **where)[0]]
    if not names:
        raise ConfigError("changed: needs rows of an intervention; allowed: together with evals='LABEL_VARIANT'.")
    return _mean(run, names[0], **where)


def index(run: Recorded, name: Index, axis: Axis = "evidence", **where: Any) -> PerReplica:
    """An index of position bias of accuracy by `axis`, over the positions that there are, as in `summary.json`."""
    rows, chosen, replica, count = _chosen(run, **where)
    positions, slot = np.unique(rows[COLUMNS[axis]][chosen], return_inverse=True)
    cell, size = replica * len(positions) + slot, count * len(positions)
    sums = np.bincount(cell, rows["correct"][chosen].astype(np.float64), minlength=size)
    with np.errstate(invalid="ignore"):
        curves = (sums / np.bincount(cell, minlength=size)).reshape(count, len(positions))
    return _each(curves, name)


def influence(run: Recorded, name: Index, condition: str | None = None, step: int | None = None) -> PerReplica:
    """The same index of the influence of input positions on the last output."""
    rows = run.rows(step, None)
    every = np.asarray(rows.get("influence", ()), np.float64)
    if not every.size:
        raise ConfigError("influence: was not measured in these rows; allowed: rows of an evaluation while training.")
    profile = every[:, _condition(rows, condition)]
    length = np.flatnonzero(np.isfinite(profile).any(axis=0)).max(initial=-1) + 1  # what is behind is padding
    return _each(profile[:, :length], name)


def even_influence(run: Recorded, name: Index) -> Float[np.ndarray, ""]:
    """The same index of the influence that masks and biases alone make, where theory tells it; one number for all."""
    theory = stored.read_summary(run.folder / "summary.json").get("theory", {}).get("influence")
    if theory is None:
        raise ConfigError(
            f"even_influence: theory tells none of {str(run.folder)!r}; allowed: decoders with model.residual = 'none'"
            " and one row that answers."
        )
    return _each(np.asarray([theory], np.float64), name)[0]  # beside replicas, however many


def _each(curves: Float[np.ndarray, "R P"], name: Index) -> PerReplica:
    found = [indices(curve)[name] for curve in curves]
    return np.array([np.nan if one is None else one for one in found])


def analysis(run: Recorded, file: str, array: str, /, *at: int | None) -> PerReplica:
    """An array that an analysis left: its value `at` an index an axis, negative ones from the end; means over None.

    Axes for which nothing is given are averaged over too.
    """
    path = run.folder / "analysis" / f"{file}.npz"
    if not path.exists():
        raise unknown("analysis", "result", file, _stems(path.parent))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [name for name in arrays if not name.startswith(AT_INIT)]
            if array not in names:
                raise unknown("analysis", "array", array, names)
            name = AT_INIT + array if run.initial else array
            if name not in arrays:
                raise NotMeasured(f"analysis {file!r} is of the trained model alone")
            found = np.asarray(arrays[name], np.float64)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        refuse_unread(path, getattr(error, "errno", None))
        raise ConfigError(
            f"analysis: {str(path)!r} does not hold arrays; allowed: the file as it was written."
        ) from None
    sizes = found.shape[1:]
    if len(at) > len(sizes) or any(i is not None and not -n <= i < n for i, n in zip(at, sizes, strict=False)):
        raise ConfigError(f"analysis: at = {at} is not allowed; allowed: an index within each of {sizes}, or None.")
    picked = found[(slice(None), *(slice(None) if i is None else i for i in at))]
    return picked.reshape(len(picked), -1).mean(axis=1)


MEASURES: dict[str, Callable[..., PerReplica]] = {
    one.__name__: one
    for one in (accuracy, log_probability, loss, ceiling, baseline, changed, index, influence, even_influence, analysis)
}


def _mean(run: Recorded, column: str, **where: Any) -> PerReplica:
    rows, chosen, replica, count = _chosen(run, **where)
    if column not in rows:
        raise unknown("formula", "column", column, [name for name in rows if name not in INTEGERS])
    values = rows[column][chosen].astype(np.float64)
    counts = np.bincount(replica, minlength=count)
    with np.errstate(invalid="ignore"):
        return np.bincount(replica, values, minlength=count) / counts  # type: ignore[no-any-return]


def _chosen(
    run: Recorded,
    *,
    condition: str | None = None,
    step: int | None = None,
    evals: str | None = None,
    query: int | None = None,
    evidence: int | None = None,
    distance: int | None = None,
    order: int | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, int]:
    """All columns, which rows are meant, the replica of each of those from 0, and how many replicas there are.

    Without a condition the task's first is meant. `query` and `evidence` are slots on the task's axes.
    """
    rows = run.rows(step, evals)
    found = columns(rows)
    replicas, replica = np.unique(found["replica"], return_inverse=True)
    chosen = found["condition"] == _condition(rows, condition)
    wanted = {"query_slot": query, "evidence_slot": evidence, "distance": distance, "order": order}
    for name, value in wanted.items():
        if value is not None:
            chosen &= found[name] == value
    if not chosen.any():
        told = ", ".join(f"{name} = {value}" for name, value in wanted.items() if value is not None)
        raise ConfigError(f"formula: no answer has {told}; allowed: what the task's items have.")
    return found, chosen, replica[chosen], len(replicas)


FILTERS = {name: kind for name, kind in typing.get_type_hints(_chosen).items() if name not in ("run", "return")}


def _condition(rows: dict[str, Any], name: str | None) -> int:
    if name is not None and name not in rows["conditions"]:
        raise unknown("condition", "condition", name, rows["conditions"])
    return 0 if name is None else int(rows["conditions"].index(name))


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """`manifest.json` of a run folder, {} where there is none. Raises ConfigError where it is damaged."""
    return stored.read(folder / "manifest.json", MANIFEST)
