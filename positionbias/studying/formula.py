"""The language of claims: arithmetic over what runs left behind, with one value a replica.

    accuracy('masks/causal', condition='conflict', order=0) - accuracy('masks/causal', condition='conflict', order=1)

A formula is made of numbers, `+ - * /`, comparisons (1 where they hold, else 0), `min`, `max`, `abs`, `log` and the
measures of `recorded.py`, whose first argument names a run as PART/CELL, or PART where a part is one run. Replicas
are paired by index between runs. Text is parsed with Python's `ast`; nothing is ever evaluated as Python.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from positionbias.spec import ConfigError, check_type, show, unknown, unreadable
from positionbias.studying.recorded import FILTERS, MEASURES, PerReplica, Recorded

ARITHMETIC: dict[type, Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.USub: np.negative,
    ast.Lt: lambda a, b: _holds(np.less, a, b),
    ast.LtE: lambda a, b: _holds(np.less_equal, a, b),
    ast.Gt: lambda a, b: _holds(np.greater, a, b),
    ast.GtE: lambda a, b: _holds(np.greater_equal, a, b),
}
FUNCTIONS: dict[str, tuple[range, Callable[..., Any]]] = {  # by name: how many values, and what it is of them
    "min": (range(2, 100), lambda *each: np.minimum.reduce(np.broadcast_arrays(*each))),
    "max": (range(2, 100), lambda *each: np.maximum.reduce(np.broadcast_arrays(*each))),
    "abs": (range(1, 2), np.abs),
    "log": (range(1, 2), np.log),
}
NESTING = 200  # signs in a formula, each of which may nest it deeper: far below what would exhaust Python's stack
LARGEST = 1e9  # number in a formula


def part_of(run: str) -> str:
    """The part that leaves a run, of PART/CELL or PART."""
    return run.partition("/")[0]


@dataclasses.dataclass(frozen=True)
class Reading:
    """One call of a measure: of which run, and with what."""

    measure: str
    run: str
    positional: tuple[Any, ...]
    keywords: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Formula:
    """A formula that was checked as far as it can be without runs."""

    text: str
    tree: ast.expr = dataclasses.field(repr=False, compare=False)

    @property
    def readings(self) -> list[Reading]:
        """Every call of a measure, in order."""
        calls = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))
        return [_reading(node) for node in calls if _named(node) in MEASURES]

    @property
    def runs(self) -> list[str]:
        """The runs it reads, each once, in order."""
        return list(dict.fromkeys(one.run for one in self.readings))

    def values(self, recorded: Callable[[str], Recorded]) -> PerReplica:
        """One value a replica. Raises ConfigError where a run does not hold what is asked for, or replicas cannot be
        paired, and NotMeasured where an initial run has no counterpart."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.asarray(_value(self.tree, recorded, self.text), np.float64)
        return np.atleast_1d(found)


def parse(text: Any, field: str) -> Formula:
    """The formula in `text`. Raises ConfigError, in which `field` says where it stands."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{field}: {text!r} is not allowed; allowed: the text of a formula.")
    if sum(map(text.count, "+-*/<>([{")) > NESTING:
        raise ConfigError(f"{field}: {show(text)} is nested too deeply; allowed: {NESTING} signs and brackets.")
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval").body
        for problem in _problems(tree):
            raise ConfigError(f"{field}: {problem}")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise unreadable(field, text, error) from None
    found = Formula(" ".join(text.split()), tree)
    if not found.readings:
        raise ConfigError(f"{field}: {text!r} reads no run; allowed: a formula with one of {', '.join(MEASURES)}.")
    return found


def _problems(node: ast.expr) -> Iterator[str]:
    """What in a formula is not allowed, a sentence each."""
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield from _problems(node.left)
        yield from _problems(node.right)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in ARITHMETIC:
        yield from _problems(node.operand)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in ARITHMETIC:
        yield from _problems(node.left)
        yield from _problems(node.comparators[0])
    elif isinstance(node, ast.Call) and (name := _named(node)) is not None:
        if name in FUNCTIONS:
            if len(node.args) not in FUNCTIONS[name][0] or node.keywords:
                count = "one value" if FUNCTIONS[name][0].start == 1 else "two values or more"
                yield f"{ast.unparse(node)!r} is not allowed; allowed: {name} of {count}."
            for argument in node.args:
                yield from _problems(argument)
        elif name in MEASURES:
            yield from _misused(node, name)
        else:
            yield str(unknown(name, "measure", name, [*MEASURES, *FUNCTIONS]))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and type(node.value) is not bool:
        if node.value > LARGEST:
            yield f"{show(node.value)} is not allowed; allowed: numbers up to {LARGEST:g}."
    else:
        yield f"{ast.unparse(node)!r} is not allowed; allowed: numbers, + - * /, < and > and measures of runs."


def _misused(node: ast.Call, name: str) -> Iterator[str]:
    try:
        reading = _reading(node)
    except (ValueError, TypeError, IndexError):
        yield f"{ast.unparse(node)!r} is not allowed; allowed: {name}('PART/CELL', ...) with numbers, texts and None."
        return
    if not isinstance(reading.run, str):
        yield f"{ast.unparse(node)!r} is not allowed; allowed: a run as the first argument, as 'PART/CELL'."
        return
    function = MEASURES[name]
    parameters = set(inspect.signature(function).parameters)
    allowed = parameters - {"run", "where", "at"}
    if "where" in parameters:
        allowed |= set(FILTERS)
    astray = next((key for key in reading.keywords if key not in allowed), None)
    if astray is not None:
        yield str(unknown(name, "argument", astray, allowed))
        return
    try:
        inspect.signature(function).bind(None, *reading.positional, **reading.keywords)
    except TypeError as error:
        yield f"{ast.unparse(node)!r} is not allowed, {error}; allowed: the arguments of {name}."
        return
    if {"step", "evals"} <= reading.keywords.keys():
        yield f"{ast.unparse(node)!r} is not allowed; allowed: step= or evals=, which is of one step already."
        return
    yield from _of_another_type(reading)


def _of_another_type(reading: Reading) -> Iterator[str]:
    """Arguments whose values a measure could not use, told before anything runs."""
    function = MEASURES[reading.measure]
    types = FILTERS | typing.get_type_hints(function)
    given = inspect.signature(function).bind(None, *reading.positional, **reading.keywords).arguments
    several = {"at": (), "where": {}, **given}
    flat = {name: value for name, value in given.items() if name not in ("run", "at", "where")} | several["where"]
    for name, value in [*flat.items(), *(("at", i) for i in several["at"])]:
        try:
            check_type(value, types[name], name)
        except ConfigError as error:
            yield f"{reading.measure}, {error}"


def _named(node: ast.Call) -> str | None:
    return node.func.id if isinstance(node.func, ast.Name) else None


def _reading(node: ast.Call) -> Reading:
    run, *rest = (ast.literal_eval(argument) for argument in node.args)
    keywords = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
    return Reading(str(_named(node)), run, tuple(rest), keywords)


def _value(node: ast.expr, recorded: Callable[[str], Recorded], text: str) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return ARITHMETIC[type(node.op)](_value(node.operand, recorded, text))
    if isinstance(node, ast.Call):
        name = str(_named(node))
        if name in FUNCTIONS:
            return _paired(FUNCTIONS[name][1], [_value(one, recorded, text) for one in node.args], text)
        reading = _reading(node)
        return MEASURES[name](recorded(reading.run), *reading.positional, **reading.keywords)
    if isinstance(node, ast.Compare):
        left, right, operator = node.left, node.comparators[0], node.ops[0]
    else:
        assert isinstance(node, ast.BinOp)
        left, right, operator = node.left, node.right, node.op  # type: ignore[assignment]
    return _paired(ARITHMETIC[type(operator)], [_value(left, recorded, text), _value(right, recorded, text)], text)


def _holds(compare: Callable[..., Any], a: Any, b: Any) -> Any:
    """1 where the comparison holds, 0 where it does not, nan where a side has no number."""
    return np.where(np.isnan(a) | np.isnan(b), np.nan, compare(a, b))


def _paired(function: Callable[..., Any], values: list[Any], text: str) -> Any:
    sizes = {np.size(value) for value in values if np.ndim(value)}
    if len(sizes) > 1:
        counts = " and ".join(map(str, sorted(sizes)))
        raise ConfigError(f"formula: runs of {counts} replicas cannot be paired in {text!r}; allowed: the same number.")
    return function(*values)
