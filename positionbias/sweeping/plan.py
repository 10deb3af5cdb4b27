"""`plan.json`: every cell of a sweep, written before the first of them runs. A plan may gain cells, and lose none."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from positionbias.config.sweeps import Cell
from positionbias.files import one_at_a_time, read_json, refuse_unread, write_json
from positionbias.spec import ConfigError

NAME = "plan.json"
# What there may be without a plan: a sweep that was killed early, or has just begun elsewhere, has no more than these.
EARLY = (".lock", f".{NAME}.lock", f".{NAME}.tmp")


def planned(cells: list[Cell], name: str) -> dict[str, Any]:
    """The plan of the whole sweep, whatever part of it runs here."""
    return {
        "name": name,
        "command": _whole(sys.orig_argv),
        "cells": [
            {
                "name": c.name,
                "hash": c.hash,
                "steps": c.config.train.steps,
                "overrides": c.overrides,
                "curve": c.curve,
            }
            for c in cells
        ],
    }


def _whole(command: list[str]) -> list[str]:
    """The command line of the whole sweep, where it is that of a part."""
    found = [word for word in command if not word.startswith("--cells=")]
    if "--cells" in found:
        at = found.index("--cells")
        del found[at : at + 2]
    return found


def keep(workdir: pathlib.Path, plan: dict[str, Any]) -> None:
    """Write the plan, unless it is there. Raises ConfigError as `check` does: another process may have been faster."""
    with one_at_a_time(workdir / NAME):
        if check(workdir, plan) != {cell["name"] for cell in plan["cells"]}:
            write_json(workdir / NAME, plan)


def check(workdir: pathlib.Path, plan: dict[str, Any]) -> set[str]:
    """The names of the cells planned in `workdir`, none if it is new or empty.

    Raises ConfigError for a folder of something else, and for one of a sweep that has other cells than those of `plan`.
    """
    path = workdir / NAME
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir: {str(workdir)!r} is a file; allowed: a new, an empty or a sweep folder.")
    if workdir.is_dir() and not path.exists() and any(p.name not in EARLY for p in workdir.iterdir()):
        raise ConfigError(
            f"--workdir: {str(workdir)!r} holds something else; allowed: a new, an empty or a sweep folder."
        )
    try:
        before = read_json(path)
        if before is None:
            return set()
        old = {str(c["name"]): c["hash"] for c in before["cells"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        refuse_unread(path, getattr(error, "errno", None))
        raise ConfigError(
            f"--workdir: {str(path)!r} cannot be read; allowed: a sweep folder as it was written."
        ) from None
    new = {c["name"]: c["hash"] for c in plan["cells"]}
    changed = sorted(n for n in old.keys() & new.keys() if old[n] != new[n])
    if changed or old.keys() - new.keys():
        which = (
            f"cell {changed[0]!r} has another config" if changed else f"cell {min(old.keys() - new.keys())!r} is gone"
        )
        raise ConfigError(
            f"--workdir: {str(workdir)!r} belongs to another sweep, {which}; allowed: a new folder, or the same"
            f" cells and more."
        )
    return set(old)
