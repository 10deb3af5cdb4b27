"""Which fields of tokens members read: refused where nobody tells them, noted where they tell nothing apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from positionbias import spec
from positionbias.assignments.base import Assignment
from positionbias.masks.base import Mask
from positionbias.objectives.base import Objective
from positionbias.operators.base import Operator
from positionbias.positions.base import PositionScheme
from positionbias.spec import ConfigError
from positionbias.tasks.base import Task
from positionbias.tokens import Tokens

OBJECTIVES_TELL = ("hidden", "rank")  # nothing else does
TASKS_TELL = {"segment": "segment", "role": "role", "frame": "frame", "scale": "scale", "time": "frame"}

Looks = tuple[str, Mask, Tokens, Tokens]  # a mask's field, the mask, and the tokens of queries and keys that it is on


class Watched:
    """Tokens that note which fields are read."""

    def __init__(self, tokens: Tokens, read: set[str]) -> None:
        self._tokens, self._read = tokens, read

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tokens, name)
        if name in Tokens._fields:
            self._read.add(name)
        if name in ("rows", "columns", "cut", "_replace"):
            return lambda *given, **more: Watched(found(*given, **more), self._read)
        return found


def read_by_mask(mask: Mask, q: Tokens, k: Tokens) -> set[str]:
    """The fields that a mask's rule reads of these sequences."""
    pair = q.cut(0, 1).rows(), k.cut(0, 1).columns()  # a rule reads the same of every pair
    return _watching(lambda watch: mask.bind(watch(q), watch(k)).allowed(*map(watch, pair)))


def read_by_assignment(assignment: Assignment, tokens: Tokens) -> set[str]:
    """The fields that an assignment reads."""
    return _watching(lambda watch: assignment.positions(watch(tokens)))


def _watching(call: Callable[[Callable[[Tokens], Any]], object]) -> set[str]:
    read: set[str] = set()
    call(lambda tokens: Watched(tokens, read))
    return read


def check_told(objective: Objective, looks: Iterable[Looks]) -> None:
    """Raise ConfigError for a mask that reads what the objective does not tell, and so would be another mask."""
    for field, mask, q, k in looks:
        read = read_by_mask(mask, q, k)
        for name in OBJECTIVES_TELL:
            if name in read and name not in objective.tells:
                raise ConfigError(
                    f"{field}: {spec.canonical(mask)} reads {name!r} of the tokens, which the objective"
                    f" {spec.canonical(objective)} does not tell; allowed: objectives that do ({_that_tell(name)}), or"
                    " another mask."
                )


def _that_tell(name: str) -> str:
    members: list[tuple[str, Any]] = [
        (n, spec.load_member("objectives", n, "objective")) for n in spec.names("objectives")
    ]
    return ", ".join(one for one, member in members if name in member.tells)


def idle(
    task: Task,
    looks: Iterable[Looks],
    schemes: Iterable[PositionScheme],
    operators: Iterable[Operator],
    assignment: Assignment,
) -> Iterator[str]:
    """One line for every member that reads what is the same for all tokens of the task, and so tells nothing apart.

    Of a task whose examples differ nothing is known.
    """
    if not task.shared_tokens:
        return
    layouts = [task.tokens(condition) for condition in task.conditions()]
    same = {name for name, of in TASKS_TELL.items() if all(np.ptp(getattr(told, of)) == 0 for told in layouts)}
    members: list[tuple[str, Any, set[str]]] = [(field, mask, read_by_mask(mask, q, k)) for field, mask, q, k in looks]
    members += [("model.position", scheme, set(scheme.reads)) for scheme in schemes]
    members += [("model.operator", operator, set(operator.reads_tokens)) for operator in operators]
    members += [
        ("model.assignment", assignment, set().union(*(read_by_assignment(assignment, told) for told in layouts)))
    ]
    found = {
        (field, spec.canonical(one)): sorted({TASKS_TELL[name] for name in read & same}) for field, one, read in members
    }
    for (field, text), names in found.items():
        if names:
            yield f"{field}: {text} reads the {' and the '.join(names)} of tokens, the same for all of this task's"
    if "role" not in same:
        yield from _without_tokens(layouts, [(field, one) for field, one, _ in members])


def _without_tokens(layouts: Iterable[Tokens], members: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """One line for every member that asks for a role which no token has."""
    roles = sorted({int(role) for told in layouts for role in np.unique(told.role)})
    asked = {
        (field, spec.canonical(one), name, getattr(part, name)): None
        for field, one in members
        for part in _parts(one)
        for name in getattr(part, "roles", ())
    }
    for field, text, name, role in asked:
        if role not in roles:
            told = ", ".join(map(str, roles))
            yield f"{field}: no token of this task has the {name} of {text}, role {role}; they have {told}"


def _parts(one: Any) -> Iterator[Any]:
    """A member and, of a combined mask, the masks that it is made of."""
    yield one
    for inner in vars(one).values():
        if isinstance(inner, Mask):
            yield from _parts(inner)
