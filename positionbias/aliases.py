"""What members are called elsewhere: told where such a name is refused, as a spec has one name for each of them.

A member says it as a tuple of its class, in lower case: `known_as = ("gla",)`. Nothing is imported to read it.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

_KNOWN_AS = re.compile(r"^    known_as = \(([^)]*)\)", re.MULTILINE)


def known_as(axis: str, sources: Mapping[str, pathlib.Path]) -> dict[str, str]:
    """The registered name of each member of the axis, by what else it is called; `sources` are their files."""
    found: dict[str, str] = {}
    for name, path in sources.items():
        text = path.read_text(encoding="utf-8")
        own = text.partition(f'\n@member("{axis}", "{name}")')[2].partition("\n@member(")[0]
        told = _KNOWN_AS.search(own)
        for other in re.findall(r'"([^"]+)"', told[1]) if told else []:
            if other in found or other in sources:
                raise RuntimeError(f"{axis}: {other!r} is what {name} is known as, and what another member is")
            found[other] = name
    return found


def meant(axis: str, name: str, sources: Mapping[str, pathlib.Path]) -> str | None:
    """The registered name of what is called `name` elsewhere, however it is spelt; None if nothing is."""
    return known_as(axis, sources).get(name.lower().replace("-", "_"))
