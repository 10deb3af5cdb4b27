"""What replicas of one program differ in: `train.vary`, a grid of hyperparameters that change no shape.

Every combination is one replica, and the last list varies fastest: `{"learning_rate": [a, b], "seed": [0, 1]}` is four
replicas, (a, 0), (a, 1), (b, 0), (b, 1). Replicas that differ in nothing but their seed are repetitions of one
combination, over which intervals are taken.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from positionbias import spec
from positionbias.config import schema
from positionbias.config.resolve import VARIED, leaves, may_vary

Vary = Mapping[str, Sequence[Any]]
MOST_NUMBERS = 8  # of replicas that are no run
T = TypeVar("T")


class Combination(NamedTuple):
    """Values by name, the seed aside, and the replicas that have them."""

    values: dict[str, Any]
    replicas: list[int]

    @property
    def label(self) -> str:
        """`learning_rate=0.001, p_bursty=0.5`."""
        return label(self.values)


def label(values: Mapping[str, Any]) -> str:
    """How a combination is told."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def members(replicas: Sequence[int]) -> str:
    """The replicas of a combination: `0, 1`, or `0 to 7` of three and more in a row."""
    if len(replicas) > 2 and list(replicas) == list(range(replicas[0], replicas[0] + len(replicas))):
        return f"{replicas[0]} to {replicas[-1]}"
    more = f" and {len(replicas) - MOST_NUMBERS} more" if len(replicas) > MOST_NUMBERS else ""
    return ", ".join(map(str, replicas[:MOST_NUMBERS])) + more


def replicas_told(replicas: Sequence[int]) -> str:
    """`replica 2`, `replicas 0, 1`."""
    return f"replica{'' if len(replicas) == 1 else 's'} {members(replicas)}"


def told(one: Mapping[str, Any]) -> str:
    """A combination of a summary and who has it: `learning_rate=0.001 (replicas 0, 1)`."""
    return f"{label(one['values'])} ({replicas_told(one['members'])})"


def grid(vary: Vary) -> list[dict[str, Any]]:
    """Every combination, seeds among them, in the order of the replicas; [{}] of an empty grid."""
    return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def combinations(vary: Vary) -> list[Combination]:
    """The combinations of all but the seed, if there is more than one, else []."""
    found: dict[str, Combination] = {}
    for replica, values in enumerate(grid(vary)):
        values.pop("seed", None)
        found.setdefault(label(values), Combination(values, [])).replicas.append(replica)
    return list(found.values()) if len(found) > 1 else []


def value(config: schema.Config, name: str) -> Any:
    """What the config itself says of a hyperparameter; 0 of the weight decay of a rule that has none."""
    path = may_vary(config)[name]
    if path in leaves():
        return operator.attrgetter(path)(config)
    return getattr(_member(config, path), path.rpartition(".")[2])


def of_replicas(config: schema.Config, name: str) -> list[Any]:
    """The value of every replica, [R]."""
    vary, count = config.train.vary, config.train.replicas
    return [one[name] for one in grid(vary)] if name in vary else [value(config, name)] * count


def arrays(config: schema.Config) -> dict[str, Any]:
    """What programs read of every replica, numpy [R] each by name, but the seed.

    "task" holds, by name too, the arguments of the task that replicas differ in.
    """
    fields = {name: _array(of_replicas(config, name)) for name in VARIED if name != "seed"}
    return {
        **fields,
        "task": {name: _array(of_replicas(config, name)) for name in config.train.vary if name not in VARIED},
    }


def _array(values: list[Any]) -> np.ndarray:
    return np.asarray(values, np.float32 if isinstance(values[0], float) else np.int32)


def task_of(config: schema.Config, replica: int, task: T) -> T:
    """The task with the arguments that this replica has."""
    own = grid(config.train.vary)[replica] if config.train.vary else {}
    return dataclasses.replace(task, **{name: one for name, one in own.items() if name not in VARIED})  # type: ignore[type-var]


def seeds(config: schema.Config) -> list[int] | None:
    """The seed of every replica, where they have seeds of their own."""
    return of_replicas(config, "seed") if "seed" in config.train.vary else None


def alone(config: schema.Config, replica: int) -> schema.Config:
    """The config of a run of as many replicas that all have this one's values.

    The replica is that of the same number there, or the first where seeds are varied.
    """
    return with_values(config, grid(config.train.vary)[replica] if config.train.vary else {})


def with_values(config: schema.Config, values: Mapping[str, Any]) -> schema.Config:
    """The config with these values and no `train.vary`."""
    paths = may_vary(config)
    for name, one in values.items():
        path = paths[name]
        if path not in leaves():
            field, _, argument = path.rpartition(".")
            path, one = field, spec.full(dataclasses.replace(_member(config, path), **{argument: one}))
        config = _replaced(config, path.split("."), one)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, vary={}))


def _member(config: schema.Config, path: str) -> Any:
    """The member whose argument the path names."""
    field = path.rpartition(".")[0]
    return spec.build(str(leaves()[field].axis), operator.attrgetter(field)(config), field)


def _replaced(group: Any, path: list[str], value: Any) -> Any:
    name, *below = path
    return dataclasses.replace(group, **{name: _replaced(getattr(group, name), below, value) if below else value})
