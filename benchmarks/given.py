"""What a command line of a benchmark may say."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from typing import Any

from positionbias.errors import ConfigError, unknown


def recorded(given: argparse.Namespace) -> dict[str, Any]:
    """What was given, as it stands beside results: all but where these are written."""
    return {key: value for key, value in vars(given).items() if key != "folder"}


def check(
    given: argparse.Namespace, names: Mapping[str, Iterable[str]], most: Mapping[str, int], times: Iterable[str]
) -> None:
    """Raise ConfigError for unknown names, numbers beyond 1 to `most`, times that are none, and a folder that is none.

    Flags are told by the names of their values; one with None, which was not given, is not judged.
    """

    def told(name: str) -> tuple[str, list[Any]]:
        value = getattr(given, name)
        return f"--{name.replace('_', '-')}", value if isinstance(value, list) else [] if value is None else [value]

    for name, allowed in names.items():
        flag, values = told(name)
        for value in values:
            if value not in allowed:
                raise unknown(flag, name.removesuffix("s"), value, allowed)
    for name, limit in most.items():
        flag, values = told(name)
        for value in values:
            if not 1 <= value <= limit:
                raise ConfigError(f"{flag}: {value} is not allowed; allowed: 1 to {limit}.")
    for name in times:
        flag, (value,) = told(name)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{flag}: {value} is not allowed; allowed: a number from 0.")
    if not (given.folder.is_dir() or (given.folder.parent.is_dir() and not given.folder.exists())):
        raise ConfigError(f"--folder: {given.folder} is no folder; allowed: a folder, or a new name in one.")
