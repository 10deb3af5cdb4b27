"""Verdicts: where the interval over replicas lies, by a rule that stood before the run.

A claim "holds" where the whole 95 % interval of its statistic lies in the range that it names, "fails" where none of
it does, and is "undecided" else; undecided also with fewer replicas than the claim asks for, where a replica has no
number, and where some but not all of fewer than 8 replicas solved the task. No replica is ever left out.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from positionbias.evaluation.statistics import Interval, interval, undecided
from positionbias.studying.definition import Claim
from positionbias.studying.formula import Formula
from positionbias.studying.recorded import NotMeasured, Recorded, manifest

Verdict = Literal["holds", "fails", "undecided"]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A claim's value, one a replica, what it is held against, and the verdict with its reason."""

    replicas: list[float | None]
    value: Interval
    verdict: Verdict
    reason: str
    solved: list[bool | None]  # which replicas solved the task; none where that was not asked
    at_init: Interval | None  # of the same models before training; None where there is no such number
    null: Interval | None


def judge(claim: Claim, folder_of: Callable[[str], pathlib.Path]) -> Judged:
    """The verdict on a claim of which every run is there. Raises ConfigError where a run lacks what is asked for."""

    def values(formula: Formula, initial: bool = False) -> list[float | None]:
        found = formula.values(lambda run: Recorded(folder_of(run), initial))
        return [float(value) if np.isfinite(value) else None for value in found]

    replicas = values(claim.statistic)
    flags = [None if one is None else bool(one) for one in values(claim.solved)] if claim.solved else []
    value = interval(replicas)
    verdict, reason = decide(claim, replicas, value, flags)
    try:
        at_init = interval(values(claim.statistic, initial=True))
    except NotMeasured:
        at_init = None
    null = interval(values(claim.null)) if claim.null else None
    return Judged(replicas, value, verdict, reason, flags, at_init, null)


def decide(
    claim: Claim, replicas: list[float | None], value: Interval, flags: list[bool | None]
) -> tuple[Verdict, str]:
    """The verdict and, where it is undecided, why."""
    if len(replicas) < claim.replicas:
        return "undecided", f"{len(replicas)} replicas, and {claim.replicas} are asked for"
    if value.n < len(replicas):
        return "undecided", f"{len(replicas) - value.n} of {len(replicas)} replicas have no number"
    if undecided(flags):
        return "undecided", f"{sum(map(bool, flags))} of {len(flags)} replicas solved the task, and 8 would be needed"
    low, high = value.low, value.high
    assert low is not None
    assert high is not None
    if claim.holds[0] <= low and high <= claim.holds[1]:
        return "holds", ""
    if high < claim.holds[0] or claim.holds[1] < low:
        return "fails", ""
    return "undecided", "the interval lies across an end of the range"


def record(claim: Claim, judged: Judged, folder_of: Callable[[str], pathlib.Path], scale: str) -> dict[str, Any]:
    """What `claims.json` keeps of a verdict: the rule, the values, and what they were measured with."""
    found = [manifest(folder_of(run)) for run in claim.runs]

    def each(look: Callable[[dict[str, Any]], Any]) -> list[Any]:
        return sorted({str(value) for value in map(look, found) if value is not None})

    def told(one: Interval | None) -> dict[str, float | None] | None:
        return None if one is None else one.to_dict()

    return {
        **claim.rule(scale),
        "values": judged.replicas,
        **judged.value.to_dict(),
        "verdict": judged.verdict,
        "reason": judged.reason,
        "solved_by": judged.solved,
        "at_init": told(judged.at_init),
        "null_value": told(judged.null),
        "commit": each(_commit),
        "device": each(lambda one: ", ".join(dict.fromkeys(one.get("devices", [])))),
        "jax": each(lambda one: one.get("versions", {}).get("jax")),
        "python": each(lambda one: one.get("versions", {}).get("python")),
        "hours": round(sum(float(one.get("seconds", 0)) for one in found) / 3600, 3),
    }


def _commit(one: dict[str, Any]) -> str | None:
    commit = one.get("commit")
    return None if commit is None else commit[:12] + ("+" if one.get("dirty") else "")
