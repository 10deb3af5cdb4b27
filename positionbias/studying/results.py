"""`studies/NAME/claims.json`: the verdicts of a study, scale by scale, kept in git beside the package.

{"study": NAME, "scales": {SCALE: {CLAIM: record}}}, with the records of `judging.record`. The runs that they were
measured on lie beside it, in `runs/SCALE/PART`, and are not kept in git.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from positionbias.evaluation import stored
from positionbias.files import one_at_a_time, write_json, writing
from positionbias.spec import ConfigError
from positionbias.studying.definition import SCALES, Claim, Study

NAME = "claims.json"
_NUMBER = (float, None)
_TOLD = ({"mean": _NUMBER, "low": _NUMBER, "high": _NUMBER}, None)
RECORD = {
    "says": str,
    "statistic": str,
    "holds": [_NUMBER, ...],
    "null": (str, None),
    "solved": (str, None),
    "replicas": int,
    "parts": {str: {"config": str, "sweep": (str, None), "settings": {str: str}}},
    "flags": {str: str},
    "values": [_NUMBER, ...],
    "mean": _NUMBER,
    "low": _NUMBER,
    "high": _NUMBER,
    "verdict": str,
    "reason": str,
    "solved_by": [(bool, None)],
    "at_init": _TOLD,
    "null_value": _TOLD,
    "commit": [str],
    "device": [str],
    "jax": [str],
    "python": [str],
    "hours": float,
}
SHAPE = {"study": str, "scales": {str: {str: RECORD}}}
Records = Mapping[str, Mapping[str, dict[str, Any]]]  # by scale, then by claim


def read(folder: pathlib.Path, study: str) -> Records:
    """The records in the folder of the study of that name, {} where there are none.

    Raises ConfigError where the file is damaged, of another study, or the folder is none.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--workdir: {str(folder)!r} is a file; allowed: a new folder or that of the study.")
    found = stored.read(folder / NAME, SHAPE)
    if found and found["study"] != study:
        told = f"{str(folder)!r} is of the study {found['study']!r}, this one is {study!r}"
        raise ConfigError(f"--workdir: {told}; allowed: a new folder or that of the study.")
    return found.get("scales", {}) if found else {}


def keep(folder: pathlib.Path, study: Study, scale: str, records: Mapping[str, dict[str, Any]]) -> None:
    """Put records of a scale into the file; those of other claims and scales stay, those of no claim any more go."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder / NAME):
        before = read(folder, study.name)
        merged: dict[str, dict[str, Any]] = {}
        for one in SCALES:
            found = {**before.get(one, {}), **(records if one == scale else {})}
            ordered = {claim.name: found[claim.name] for claim in study.at(one) if claim.name in found}
            merged |= {one: ordered} if ordered else {}
        write_json(folder / NAME, {"study": study.name, "scales": merged})


def current(claim: Claim, records: Records, scale: str) -> dict[str, Any] | None:
    """The record of a claim at a scale, None if there is none or its rule was changed since."""
    record = records.get(scale, {}).get(claim.name)
    return None if record is None or outdated(claim, record, scale) else record


def outdated(claim: Claim, record: Mapping[str, Any], scale: str) -> str | None:
    """What of a claim's rule at a scale was changed since its verdict, None if nothing."""
    return next((key for key, value in claim.rule(scale).items() if record[key] != value), None)
