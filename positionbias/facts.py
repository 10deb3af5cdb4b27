"""What an operator declares, and what it costs, for `python -m positionbias.list operators NAME`."""

from __future__ import annotations

import textwrap
import typing

from positionbias import compatibility, costs, spec
from positionbias.aliases import known_as
from positionbias.config.build import unused
from positionbias.operators.base import Operator, Pattern

COLUMNS = 100
LABEL = 11  # letters in front of each line


def operator(name: str) -> str:
    """Lines of at most 100 columns: patterns, masks, schemes, how sequences are generated, state and products."""
    one: Operator = spec.build("operators", compatibility.example("operators", name), "NAME")
    others = known_as("operators", {name: spec.source("operators", name)})
    found = {"in papers": ", ".join(others)} if others else {}
    found |= {
        "told of": f"{spec.canonical(one)}; other arguments may change what follows",
        "attention": _patterns(one),
        "masks": _masks(name),
        "positions": _positions(one),
        "models": _architectures(name),
        "generated": _generated(one),
    }
    causal = costs.operators(compatibility.ARGUMENTS, [name])[name]
    few, many = costs.LENGTHS
    kept_few, kept_many, products_few, products_many, grow = costs.line(causal)
    of = f"of {spec.canonical(causal)}, {costs.HEADS} heads of {costs.SIZE}"
    found["keeps"] = f"{kept_few} numbers after {few} tokens, {kept_many} after {many}; {of}"
    found["products"] = f"{products_few} a token of {few}, {products_many} of {many}, in all as {grow}"
    return "\n".join(_line(label, text) for label, text in found.items())


def _line(label: str, text: str) -> str:
    return textwrap.fill(text, COLUMNS, initial_indent=f"{label:<{LABEL}}", subsequent_indent=" " * LABEL)


def _patterns(one: Operator) -> str:
    works = [pattern.replace("_", " ") for pattern in typing.get_args(Pattern) if pattern in one.patterns]
    lacks: dict[str, list[str]] = {}
    for pattern in typing.get_args(Pattern):
        if pattern not in one.patterns:
            lacks.setdefault(one.lacking(pattern), []).append(pattern.replace("_", " "))
    no = [f"not {' and '.join(kinds)}, as {why}" for why, kinds in lacks.items()]
    return "; ".join([", ".join(works), *no])


def _masks(name: str) -> str:
    built = [m for m in spec.names("masks") if compatibility.refusal("operators", name, "masks", m) is None]
    if len(built) == len(spec.names("masks")):
        return "every one"
    return f"{', '.join(built)}, of tokens without frames and scales ('Operators and masks' in BUILD.md)"


def _architectures(name: str) -> str:
    every = spec.names("architectures")
    built = [one for one in every if compatibility.told("operators", name, "architectures", one).refusal is None]
    if len(built) == len(every):
        return "every one"
    return f"{', '.join(built)} ('Operators and architectures' in BUILD.md)"


def _positions(one: Operator) -> str:
    schemes = {n: spec.build("positions", compatibility.example("positions", n), "x") for n in spec.names("positions")}
    used = [name for name, scheme in schemes.items() if unused(scheme, one) is None]
    return "every scheme" if len(used) == len(schemes) else ", ".join(used)


def _generated(one: Operator) -> str:
    if one.carries:
        return "with a state"
    return "with keys and values kept" if one.steps else f"by calls on all rows, as {one.whole}"
