"""A user's mistake, and how wrong names and values are told."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, Union

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


def unknown(field: str, what: str, name: str, options: Iterable[str], meant: str | None = None) -> ConfigError:
    """The error for a name that is not among `options`: the one meant or nearest, and all that are allowed if few."""
    options = sorted(options)
    hint = nearest(name, options) if meant is None else f", did you mean {meant!r}?"
    listed = "" if hint and len(options) > FEW else f" allowed: {', '.join(options) or 'none'}."
    return ConfigError(f"{field}: unknown {what} {name!r}{hint or ';'}{listed}")


def unreadable(field: str, text: str, error: BaseException) -> ConfigError:
    """The error for a spec that Python's grammar does not take, and which of its brackets is at fault if one is."""
    brackets = re.search(r"('.') was never closed|unmatched ('.')|('.') does not match opening", str(error))
    why = f", where {brackets[brackets.lastindex or 0]} has no other half" if brackets else ""
    return ConfigError(f"{field}: cannot read {text!r}{why}; write name or name(argument=value, ...).")


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise the one-sentence ConfigError for an argument out of range unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} = {show(value)} is not allowed; allowed: {allowed}.")


def show(value: Any) -> str:
    """A value as one line of at most 80 characters, for a sentence."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever a config's own objects raise; Python refuses whole numbers of thousands of digits
        text = "a whole number too long to print" if issubclass(type(value), int) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def type_name(annotation: Any) -> str:
    """How an annotation is told to a user."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(repr(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin is tuple:
        told = re.sub(r"\ba (list|whole number|number|table)\b", r"\1s", type_name(args[0]) if args else "")
        return f"a list of {told}".removesuffix(" of ")
    if hasattr(annotation, "axis"):
        return f"one of the {annotation.axis}"
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "text", dict: "a table"}
    return {**plain, type(None): "None"}.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


def named(field: str, what: str, given: str, known: Iterable[str]) -> list[str]:
    """The names of `given`, with commas between; ConfigError for one that is not known, or that is there twice."""
    names, known = [name.strip() for name in given.split(",")], list(known)
    for name in names:
        if name not in known:
            raise unknown(field, what, name, known)
        if names.count(name) > 1:
            raise ConfigError(f"{field}: {name!r} is given twice; allowed: each {what} once.")
    return names
