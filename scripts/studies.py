"""Write STUDIES.md, the table of every claim, from the studies' definitions and results: python scripts/studies.py."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the package beside it, not the one installed

from positionbias.study import every
from positionbias.studying.told import page

ROOT = pathlib.Path(__file__).parents[1]


if __name__ == "__main__":
    (ROOT / "STUDIES.md").write_text(page(every(ROOT)), encoding="utf-8")
