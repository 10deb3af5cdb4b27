"""Sweeps: named sets of overrides that a config file defines, each cell resolved before anything runs.

A file defines `sweep(add)` (its name is "default") or `sweep_NAME(add)`, and calls `add(overrides, name=None,
curve=None)` once a cell, with dotted fields as on the command line:

    def sweep_depth(add):
        for overrides in product({"model.layers": [1, 2, 4], "model.position": ["none", "learned"]}):
            add(overrides)

Several named sweeps multiply: every cell of one with every cell of the other. Cells that are told the same `curve` are
joined in the report, over the size of the state that they keep.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from positionbias import spec
from positionbias.config import files, schema
from positionbias.config.cli import Overrides, apply_overrides
from positionbias.config.resolve import check_safe_name, config_hash, plain, resolve
from positionbias.files import shortened
from positionbias.spec import ConfigError

DEFAULT = "default"
LONGEST = 80  # bytes of a name made from overrides


@dataclasses.dataclass(frozen=True)
class Cell:
    """One configuration of a sweep: its folder's name, its config, and the overrides of the sweep that made it.

    Cells of one `curve` are joined in the report, over the size of the state that they keep.
    """

    name: str
    config: schema.Config
    overrides: dict[str, Any]
    curve: str | None = None

    @functools.cached_property
    def hash(self) -> str:
        """That of its config, by which its run folder is known."""
        return config_hash(self.config)


def product(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Overrides for every combination of the values of several fields, the last field varying fastest."""
    lists = _lists(axes, "product")
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def zipped(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Overrides for the first values of several fields together, then the second ones, and so on."""
    lists = _lists(axes, "zipped")
    lengths = {field: len(values) for field, values in lists.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{field} has {length}" for field, length in lengths.items())
        raise ConfigError(f"zipped: the lists must be equally long, but {shown}.")
    for values in zip(*lists.values(), strict=True):
        yield dict(zip(lists, values, strict=True))


def sweep_names(file: files.ConfigFile) -> list[str]:
    """The names of the sweeps a file defines."""
    return [_sweep_name(function) for function in file.functions("sweep")]


def cells(
    path_with_arguments: str, names: str | None = None, overrides: Overrides = (), asked: str | None = None
) -> list[Cell]:
    """Every cell of the named sweeps (`NAME` or `NAME,NAME2`) of a config file, resolved, in the order added.

    Without `names` the file's only sweep is meant, or else its `sweep(add)`. `overrides`, those of the command line,
    hold in every cell. Raises ConfigError for an unknown name, for sweeps or a command line that set the same field,
    for two cells with one name or one config, and for any cell that does not resolve: of several, for one that `asked`
    names, NAME,NAME2, before others, and for none where the command line alone is refused alike.
    """
    file = files.read(path_with_arguments)
    given = list(overrides.items() if isinstance(overrides, Mapping) else overrides)
    apply_overrides(file.raw(), given)  # a mistake on the command line is told without naming a cell
    found: list[Cell] = []
    own_name: list[bool] = []
    written: dict[tuple[str, int, str], str] = {}
    broken: dict[str, str] = {}
    for name, curve, wanted in _multiplied(file, _chosen_sweeps(file, names)):
        for field in wanted:
            if field in dict(given):
                raise ConfigError(f"{field}: is set by the sweep and on the command line; allowed: one of them.")
        label = name or _label(wanted)
        try:
            config = resolve(apply_overrides(file.raw(), [*given, *wanted.items()]), written)
        except ConfigError as error:
            broken[label] = str(error)
            continue
        found.append(Cell(label, config, wanted, curve))
        own_name.append(name is not None)
    if broken:
        _refuse_broken(broken, file, given, asked)
    _refuse_equal(found)
    return _distinct(found, own_name)


def _refuse_broken(
    broken: Mapping[str, str], file: files.ConfigFile, given: list[tuple[str, Any]], asked: str | None
) -> None:
    """Raise the ConfigError of one of the cells that are refused, the whole plan with it."""
    wanted = [name.strip() for name in (asked or "").split(",")]
    label = next((name for name in wanted if name in broken), next(iter(broken)))
    try:
        resolve(apply_overrides(file.raw(), given))
    except ConfigError as error:
        if str(error) == broken[label]:
            raise
    beside = ", which is planned beside those of --cells" if asked is not None and label not in wanted else ""
    raise ConfigError(f"cell {label!r}{beside}: {broken[label]}")


def _lists(axes: Mapping[str, Sequence[Any]], what: str) -> dict[str, list[Any]]:
    lists = plain(axes)
    for field, values in lists.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{what}: {field} = {spec.show(values)} is not allowed; allowed: a list of values.")
    return lists


def _sweep_name(function: str) -> str:
    return function.removeprefix("sweep").removeprefix("_") or DEFAULT


def _chosen_sweeps(file: files.ConfigFile, names: str | None) -> list[str]:
    known = sweep_names(file)
    if not known:
        raise ConfigError(f"--sweep: {file.path} defines no sweep; write sweep(add) or sweep_NAME(add) in it.")
    if names is None:
        if len(known) > 1 and DEFAULT not in known:
            raise ConfigError(f"--sweep: must be given for {file.path}; allowed: {', '.join(known)}.")
        return [DEFAULT] if DEFAULT in known else known
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise spec.unknown("--sweep", "sweep", name, known)
        if chosen.count(name) > 1:
            raise ConfigError(f"--sweep: {name!r} is given twice; allowed: each of {', '.join(known)} once.")
    return chosen


_Added = tuple[str | None, str | None, dict[str, Any]]  # name, curve and overrides; None where not given


def _added(file: files.ConfigFile, sweep: str) -> list[_Added]:
    """What one sweep adds."""
    added: list[_Added] = []

    def add(overrides: dict[str, Any], name: str | None = None, curve: str | None = None) -> None:
        if not isinstance(overrides, dict) or not all(isinstance(field, str) for field in overrides):
            raise ConfigError(f"add: {spec.show(overrides)} is not allowed; allowed: a dict of dotted fields.")
        if name is not None:
            if not isinstance(name, str):
                raise ConfigError(f"add: the cell name {spec.show(name)} is not allowed; allowed: text.")
            check_safe_name(name, "cell name")
        if not (curve is None or (isinstance(curve, str) and curve.strip())):
            raise ConfigError(f"add: curve = {spec.show(curve)} is not allowed; allowed: None or text.")
        added.append((name, curve, plain(overrides)))

    functions = {_sweep_name(function): call for function, call in file.functions("sweep").items()}
    file.call(functions[sweep], add)
    if not added:
        raise ConfigError(f"--sweep: the sweep {sweep!r} of {file.path} adds no cell; call add(overrides) in it.")
    return added


def _multiplied(file: files.ConfigFile, chosen: list[str]) -> Iterator[_Added]:
    """Every combination; its name and its curve are None unless one of their parts was given."""
    for parts in itertools.product(*(_added(file, sweep) for sweep in chosen)):
        merged: dict[str, Any] = {}
        for _, _, overrides in parts:
            for field in overrides:
                if field in merged:
                    raise ConfigError(f"--sweep: {' and '.join(chosen)} both set {field}; allowed: only one of them.")
            merged |= overrides
        named = any(name is not None for name, _, _ in parts)
        joined = "_".join(name or _label(overrides) for name, _, overrides in parts)
        curve = ", ".join(curve for _, curve, _ in parts if curve is not None) or None
        yield shortened(joined, LONGEST, repr(merged)) if named else None, curve, merged


def _label(overrides: dict[str, Any]) -> str:
    """A folder's name that tells the overrides, as `layers-4_mask-causal`; the unchanged config is `base`."""
    ends = [field.rpartition(".")[2] for field in overrides]
    pieces = []
    for field, end in zip(overrides, ends, strict=True):
        label = end if ends.count(end) == 1 else field
        pieces.append(f"{label}-{re.sub(r'[^A-Za-z0-9.]+', '-', str(overrides[field])).strip('-')}")
    return shortened("_".join(pieces) or "base", LONGEST, repr(sorted(overrides.items())))


def _refuse_equal(found: list[Cell]) -> None:
    first: dict[str, str] = {}
    for cell in found:
        if cell.hash in first:
            raise ConfigError(f"--sweep: the cells {first[cell.hash]!r} and {cell.name!r} are the same config.")
        first[cell.hash] = cell.name


def _distinct(found: list[Cell], own_name: list[bool]) -> list[Cell]:
    """Cells with names that differ even where folders ignore case: made names get their config's hash if they clash."""
    names = collections.Counter(cell.name.casefold() for cell in found)
    result = []
    for cell, own in zip(found, own_name, strict=True):
        if names[cell.name.casefold()] > 1:
            if own:
                raise ConfigError(f"--sweep: two cells are called {cell.name!r}; allowed: a name of its own for each.")
            cell = dataclasses.replace(cell, name=f"{cell.name}-{cell.hash}")
        result.append(cell)
    return result
