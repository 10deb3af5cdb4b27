"""The cells of a finished sweep, for what draws them into docs/."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any


def cells(folder: pathlib.Path) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """What the plan has of each cell, its summary.json and its manifest.json; ends with a sentence where one lacks."""
    plan = _read(folder / "plan.json", f"{str(folder)!r} is no folder of a sweep.")
    for cell in plan["cells"]:
        home = folder / "cells" / cell["name"]
        late = f"cell {cell['name']!r} of {str(folder)!r} has not finished; the sweep's command goes on."
        yield cell, _read(home / "summary.json", late), _read(home / "manifest.json", late)


def _read(path: pathlib.Path, otherwise: str) -> dict[str, Any]:
    if not path.is_file():
        sys.exit(f"error: {otherwise}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
