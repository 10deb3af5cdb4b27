"""`summary.json` from raw rows: accuracy by position with intervals over replicas, and indices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from positionbias.arrays import Float
from positionbias.config import varied as grid
from positionbias.evaluation.rows import BASELINE, CHANGED, LOSS, Rows, columns, of_replicas
from positionbias.evaluation.statistics import (
    INDICES,
    Interval,
    indices,
    interval,
    paired_difference,
    share,
    solved,
    verdict,
)

BY = {"by_query_position": "query_slot", "by_evidence_position": "evidence_slot", "by_distance": "distance"}


def summarise(
    rows: Rows,
    at_init: Rows | None = None,
    *,
    steps: int | None = None,
    of: int | None = None,
    varied: Mapping[str, Sequence[Any]] | None = None,
    theory: Mapping[str, Any] | None = None,
    state_size: int | None = None,
) -> dict[str, Any]:
    """The measures of one evaluation, strict JSON (None where there is no number); see BUILD.md.

    The top level is the first condition, `by_condition` has every one, `at_init` the same measures from the rows of
    step 0. `steps` is the training step of `rows`, `of` the steps of the whole training, `varied` the grid of which
    every replica is a combination (`train.vary`), `theory` what `theory_of` tells, `state_size` the numbers that the
    model keeps to go on with a sequence.

    Where replicas differ in more than seeds, `combinations` has a summary of each combination, of the replicas that
    share it; all else are means over all replicas, of which there are no intervals and no verdict.
    """
    varied = {name: list(values) for name, values in (varied or {}).items()}
    found = grid.combinations(varied)
    told: dict[str, Any] = {"steps": steps, "of": of, "theory": theory, "state_size": state_size}
    each = []
    for one in found:
        initial = None if at_init is None else of_replicas(at_init, one.replicas)
        own = summarise(of_replicas(rows, one.replicas), initial, **told)
        each.append({**own, "values": one.values, "members": one.replicas})
    conditions = _conditions(rows)
    summary = {
        **next(iter(conditions.values())),
        "by_condition": conditions,
        "paired": _paired(rows),
        "at_init": next(iter(_conditions(at_init).values())) if at_init is not None else {},
        "axes": {"query": "query position", "evidence": "evidence position", **rows.get("axes", {})},
        "steps": steps,
        "of": of,
        "varied": varied,
        "note": _note(found),
        "theory": theory or {},
        "state_size": state_size,
    }
    return _strict({**(_pooled(summary) if each else summary), "combinations": each})


def _pooled(value: Any) -> Any:
    """`value` without what is only true of replicas that differ by chance alone."""
    if isinstance(value, list):
        return [_pooled(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    blank = dict.fromkeys(("low", "high") if "mean" in value and "low" in value else ())
    blank |= {"verdict": None} if "verdict" in value else {}
    return {name: _pooled(one) for name, one in value.items()} | blank


def _paired(rows: Rows) -> dict[str, dict[str, Any]]:
    """Accuracy of items that several conditions share, which is right where all of them are answered right.

    `differences` are the accuracy of one condition minus that of a later one, on the same items, for every two.
    """
    found, items = columns(rows), [str(name) for name in rows.get("items", ())]
    replicas, replica = np.unique(found["replica"], return_inverse=True)
    result = {}
    for name in dict.fromkeys(items):
        shared = [index for index, one in enumerate(items) if one == name]
        if len(shared) > 1:
            parts = [found["condition"] == index for index in shared]
            right = np.prod([found["correct"][part] for part in parts], axis=0)
            accuracy = _by_replica(right, replica[parts[0]], len(replicas))[:, 0]
            names = [str(rows["conditions"][index]) for index in shared]
            each = [_by_replica(found["correct"][part], replica[part], len(replicas))[:, 0] for part in parts]
            differences = [
                {"first": names[i], "second": names[j], **paired_difference(each[i], each[j]).to_dict()}
                for i, j in itertools.combinations(range(len(names)), 2)
            ]
            result[name] = {
                **interval(accuracy).to_dict(),
                "replicas": accuracy.tolist(),
                "conditions": names,
                "differences": differences,
            }
    return result


def _note(found: Sequence[grid.Combination]) -> str | None:
    if not found:
        return None
    return f"Replicas differ in {' and '.join(found[0].values)}: intervals are over those of one combination."


def _conditions(rows: Rows) -> dict[str, dict[str, Any]]:
    found = columns(rows)
    replicas, replica = np.unique(found["replica"], return_inverse=True)
    influence = np.asarray(rows.get("influence", np.zeros((0, 0, 0))), np.float64)
    measured = {}
    for index, name in enumerate(rows["conditions"]):
        chosen = found["condition"] == index
        if not chosen.any():
            continue
        part = {name: column[chosen].astype(np.float64) for name, column in found.items()}
        profile = influence[:, index] if influence.size else np.zeros((0, 0))
        measured[str(name)] = _measure(part, replica[chosen], len(replicas), profile)
    if not measured:
        raise ValueError("rows hold no answers")
    return measured


def _by_replica(
    values: Float[np.ndarray, "n"], replica: np.ndarray, size: int, slot: np.ndarray | None = None, slots: int = 1
) -> Float[np.ndarray, "R P"]:
    """Mean of `values` per replica and slot; nan where there are none."""
    cell = replica * slots + (0 if slot is None else slot)
    total = np.bincount(cell, weights=values, minlength=size * slots)
    count = np.bincount(cell, minlength=size * slots)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(size, slots)


def _measure(
    part: dict[str, np.ndarray], replica: np.ndarray, size: int, profile: Float[np.ndarray, "R T"]
) -> dict[str, Any]:
    accuracy = _by_replica(part["correct"], replica, size)[:, 0]
    # What is held against the ceiling are the answers of which it is known, and no others.
    known = np.isfinite(part["ceiling"])
    ceiling, reached = (_by_replica(part[name][known], replica[known], size)[:, 0] for name in ("ceiling", "correct"))
    flags = solved(reached, ceiling)
    result: dict[str, Any] = {
        "accuracy": {
            **interval(accuracy).to_dict(),
            "replicas": accuracy.tolist(),
            "solved": share(flags),
            "verdict": verdict(flags),
            "deviation": {"mean": interval(reached - ceiling).mean, "replicas": (reached - ceiling).tolist()},
        },
        "log_probability": interval(_by_replica(part["log_probability"], replica, size)[:, 0]).to_dict(),
        "ceiling": {
            "mean": _mean(part["ceiling"][known]),
            "replicas": ceiling.tolist(),
            "known": float(known.mean()),
            "accuracy": interval(reached).mean,
        },
        "baselines": {
            name.removeprefix(BASELINE): float(column.mean())
            for name, column in part.items()
            if name.startswith(BASELINE)
        },
        "answers": len(replica),
    }
    if LOSS in part:
        loss = _by_replica(part[LOSS], replica, size)[:, 0]
        beside = {name.removeprefix(f"{LOSS}/"): part[name].mean() for name in part if name.startswith(f"{LOSS}/")}
        floor = beside.pop("floor", None)
        result[LOSS] = {**interval(loss).to_dict(), "replicas": loss.tolist(), "floor": floor, "rules": beside}
    found = {}
    for measure, column in BY.items():
        axis = measure.removeprefix("by_")
        result[measure], found[axis] = _along(axis.replace("_", " "), part, replica, size, part[column])
    result["influence"] = influence_rows(profile)
    if result["influence"]:
        found["influence"] = _indices("input position", profile[:, : len(result["influence"])])
    result["indices"] = found
    result["order_gap"] = _order_gap(part, replica, size)
    shares = [name for name in CHANGED if name in part]
    result |= {name: interval(_by_replica(part[name], replica, size)[:, 0]).to_dict() for name in shares}
    result["collinear"] = _collinear(part["evidence_slot"], part["distance"])
    return result


def _along(
    axis: str, part: dict[str, np.ndarray], replica: np.ndarray, size: int, position: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one curve and its indices."""
    positions, slot = np.unique(position.astype(np.int64), return_inverse=True)
    count = np.bincount(slot, minlength=len(positions))
    curves = {
        name: _by_replica(part[name], replica, size, slot, len(positions)) for name in ("correct", "log_probability")
    }
    known = np.isfinite(part["ceiling"])
    lacking = (part["ceiling"] - part["correct"])[known]
    # ceilings and baselines belong to the items, so they are means over items, whoever answered them
    one = np.zeros(len(slot), np.int64)
    ceiling = _by_replica(part["ceiling"][known], one[known], 1, slot[known], len(positions))[0]
    baseline, share_known = (
        _by_replica(values, one, 1, slot, len(positions))[0] for values in (part["baseline/order_free"], known)
    )
    rows = [
        {
            "position": int(at),
            **interval(curves["correct"][:, i]).to_dict(),
            "count": int(count[i]),
            "ceiling": float(ceiling[i]),
            "ceiling_known": float(share_known[i]),
            "baseline": float(baseline[i]),
            "log_probability": interval(curves["log_probability"][:, i]).to_dict(),
        }
        for i, at in enumerate(positions)
    ]
    if LOSS in part:
        lost = _by_replica(part[LOSS], replica, size, slot, len(positions))
        floor = np.bincount(slot, weights=part.get(f"{LOSS}/floor", np.full(len(slot), np.nan))) / count
        for i, row in enumerate(rows):
            row[LOSS] = {**interval(lost[:, i]).to_dict(), "floor": float(floor[i])}
    found = _indices(axis, curves["correct"])
    below = _indices(axis, _by_replica(lacking, replica[known], size, slot[known], len(positions)))
    return rows, {**found, "ceiling_minus_accuracy": {name: below[name] for name in INDICES}}


def _mean(values: Float[np.ndarray, "n"]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _indices(axis: str, curves: Float[np.ndarray, "R P"]) -> dict[str, Any]:
    each = [indices(curve) for curve in curves]
    return {"axis": axis, **{name: interval([one[name] for one in each]).to_dict() for name in INDICES}}


def influence_rows(profile: Float[np.ndarray, "R T"]) -> list[dict[str, Any]]:
    """Interval of the influence profile at every input position; nan padding at the end is dropped."""
    rows = [{"position": t, **interval(profile[:, t]).to_dict()} for t in range(profile.shape[1])]
    while rows and rows[-1]["mean"] is None:
        rows.pop()
    return rows


def _order_gap(part: dict[str, np.ndarray], replica: np.ndarray, size: int) -> dict[str, Any]:
    """Accuracy in the first order (the lowest rank) minus the last (for all ranks present: its reversal), paired.

    `above_chance` is the gap of accuracy minus the chance of each item. Answers of order -1 are left out.
    """
    counted = part["order"] >= 0
    ranks, rank = np.unique(part["order"][counted].astype(np.int64), return_inverse=True)
    if len(ranks) < 2:
        return {}
    correct, replica = part["correct"][counted], replica[counted]
    curves = _by_replica(correct, replica, size, rank, len(ranks))
    above = _by_replica(correct - part["baseline/chance"][counted], replica, size, rank, len(ranks))
    gap: Interval = interval(curves[:, 0] - curves[:, -1])
    return {
        "first": int(ranks[0]),
        "second": int(ranks[-1]),
        **gap.to_dict(),
        "above_chance": interval(above[:, 0] - above[:, -1]).to_dict(),
        "by_order": [
            {"order": int(one), **interval(curves[:, i]).to_dict(), "count": int((rank == i).sum())}
            for i, one in enumerate(ranks)
        ],
    }


def _collinear(evidence: np.ndarray, distance: np.ndarray) -> bool:
    """Whether evidence position and distance are one variable: each value of one goes with one value of the other."""
    pairs = len(np.unique(np.stack([evidence, distance]), axis=1).T)
    return pairs > 1 and pairs == len(np.unique(evidence)) == len(np.unique(distance))


def _strict(value: Any) -> Any:
    """`value` with plain Python types and None for every number that strict JSON cannot say."""
    if isinstance(value, Mapping):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_strict(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
