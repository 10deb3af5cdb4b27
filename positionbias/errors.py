"""A user's mistake, and how a wrong name is told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

FEW = 12  # options that are told beside the nearest one
HALF = 1000  # characters of the beginning, and of the end, of a sentence that is too long


class ConfigError(ValueError):
    """A user's mistake, told in one sentence; entries print it and exit with code 2.

    Long hexadecimal is cut, and the middle of what is no sentence any more, as where a text of a million letters is
    quoted.
    """

    def __init__(self, sentence: str) -> None:
        sentence = re.sub(r"([0-9a-f]{16})[0-9a-f]{48,}", r"\1...", sentence)
        if len(sentence) > 2 * HALF:
            sentence = f"{sentence[:HALF]}...{sentence[-HALF:]}"
        super().__init__(sentence)


class GoneError(Exception):
    """Another process of the same run has ended, told in one sentence; entries exit with code 1."""


def nearest(name: str, options: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the option closest to `name`, or an empty string."""
    found = difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def unknown(field: str, what: str, name: str, options: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `options`: the nearest right one, and all that are allowed if few."""
    options = sorted(options)
    hint = nearest(name, options)
    listed = "" if hint and len(options) > FEW else f" allowed: {', '.join(options) or 'none'}."
    return ConfigError(f"{field}: unknown {what} {name!r}{hint or ';'}{listed}")


def unreadable(field: str, text: str, error: BaseException) -> ConfigError:
    """The error for a spec that Python's grammar does not take, and which of its brackets is at fault if one is."""
    brackets = re.search(r"('.') was never closed|unmatched ('.')|('.') does not match opening", str(error))
    why = f", where {brackets[brackets.lastindex or 0]} has no other half" if brackets else ""
    return ConfigError(f"{field}: cannot read {text!r}{why}; write name or name(argument=value, ...).")
