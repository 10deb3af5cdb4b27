"""Which cells of a sweep share a program: those whose configs differ only in what replicas of one run may differ in.

Programs read that as arguments, so that such cells are one program, with other numbers given to it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from positionbias import spec
from positionbias.config import schema
from positionbias.config.resolve import VARIED, leaves
from positionbias.config.sweeps import Cell
from positionbias.errors import named
from positionbias.spec import ConfigError

NAMES = 6  # of cells that are told of a program
LINES = 8  # programs that are told one by one


class Split(NamedTuple):
    """A config in two: what its program is made of, as text, and what that reads as arguments, by name.

    The latter are values, or the lists of `train.vary`, whose order is that of the replicas.
    """

    program: str
    own: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shared:
    """Cells of one program, in the order added."""

    cells: list[Cell]
    own: list[dict[str, Any]]

    @property
    def fields(self) -> list[str]:
        """What they differ in."""
        first = self.own[0]
        return [name for name in first if any(own[name] != first[name] for own in self.own)] or ["name"]


def split(config: schema.Config) -> Split:
    """Two configs have one program if theirs is equal: to a letter, but for names and what replicas may differ in.

    Arguments of the task are not among the latter: a program reads those that its own replicas differ in, alone.
    """
    told = schema.to_dict(config)
    vary: dict[str, Any] = told["train"]["vary"]
    told["train"]["vary"] = [name for name in vary if name not in VARIED]
    own = {name: values for name, values in vary.items() if name not in VARIED}
    for name, path in VARIED.items():
        field, argument = (path, "") if path in leaves() else (path.rpartition(".")[0], path.rpartition(".")[2])
        *groups, last = field.split(".")
        group = functools.reduce(operator.getitem, groups, told)
        group[last], value = _without(field, group[last], argument) if argument else (None, group[last])
        own[name] = vary.get(name, value)
    return Split(json.dumps({**told, "name": None}), own)


@functools.lru_cache(4096)
def _without(field: str, text: str, argument: str) -> tuple[list[str], Any]:
    """The spec in a field without one of its arguments, and the value of that; None if it has no such argument."""
    member = spec.build(str(leaves()[field].axis), text, field)
    told = {name: getattr(member, name) for name in spec.arguments(type(member))}
    value = told.pop(argument, None)
    return [member.spec_name, *(f"{name}={one!r}" for name, one in told.items())], value


def programs(cells: Sequence[Cell]) -> list[Shared]:
    """The programs of a sweep, in the order of their first cells."""
    found: dict[str, Shared] = {}
    for cell in cells:
        program, own = split(cell.config)
        shared = found.setdefault(program, Shared([], []))
        shared.cells.append(cell)
        shared.own.append(own)
    return list(found.values())


def part(found: Sequence[Cell], given: str) -> list[Cell]:
    """The cells that `--cells` names, in the order added: `NAME,NAME2`, or `3/12` for the third of twelve shares.

    Shares are of equal size, give or take a cell, and cells of one program are in as few of them as that allows.
    Raises ConfigError for anything else, and for more shares than there are cells.
    """
    share = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", given)
    if share is not None:
        place, shares = int(share[1]), int(share[2])
        if not 1 <= place <= shares <= len(found):
            what = f"I/N with I from 1 to N, and N from 1 to the {len(found)} cells there are"
            raise ConfigError(f"--cells: {given!r} is not allowed; allowed: {what}.")
        dealt = [cell for shared in programs(found) for cell in shared.cells]
        taken = {cell.name for cell in dealt[(place - 1) * len(dealt) // shares : place * len(dealt) // shares]}
        return [cell for cell in found if cell.name in taken]
    if "/" in given:
        raise ConfigError(f"--cells: {given!r} is not allowed; allowed: names of cells, or one share as in 3/12.")
    names = named("--cells", "cell", given, [cell.name for cell in found])
    return [cell for cell in found if cell.name in names]


def plan(cells: Sequence[Cell], how: Callable[[schema.Config], str]) -> Iterator[str]:
    """Lines that tell how many cells and programs there are, which cells share one and differ in what, and the others.

    `how` says of a config how cells of its program are run; it stands behind their number.
    """
    found = programs(cells)
    yield f"{_several(len(cells), 'cell')}, {_several(len(found), 'program')}"
    shared = [one for one in found if len(one.cells) > 1]
    for one in shared[:LINES]:
        told = f"{len(one.cells)} cells differ in {_listed(one.fields)}, {how(one.cells[0].config)}"
        yield f"  {told}: {_named(one.cells)}"
    if left := shared[LINES:]:
        yield f"  {sum(len(one.cells) for one in left)} cells share {_several(len(left), 'more program')}"
    if own := [cell for one in found if len(one.cells) == 1 for cell in one.cells]:
        whose = "its" if len(own) == 1 else "their"
        yield f"  {_several(len(own), 'cell')} with a program of {whose} own: {_named(own)}"


def _named(cells: Sequence[Cell]) -> str:
    names = [cell.name for cell in cells]
    more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
    return ", ".join([*names[:NAMES], *more])


def _several(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _listed(names: Sequence[str]) -> str:
    *some, last = names
    return f"{', '.join(some)} and {last}" if some else last
