"""Write the tables of members and of what works together into BUILD.md: python scripts/members.py."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the package beside it, not the one installed

from positionbias.compatibility import page

BEGIN, END = "<!-- members: begin -->", "<!-- members: end -->"
BUILD_MD = pathlib.Path(__file__).parents[1] / "BUILD.md"


def written(text: str) -> str:
    """`text` with what stands between the marks made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{page()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    BUILD_MD.write_text(written(BUILD_MD.read_text(encoding="utf-8")), encoding="utf-8")
