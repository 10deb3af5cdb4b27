"""Asking the analyses: every replica of a run, trained and as it was drawn, and what is written of it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import inspect
import io
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from positionbias import spec
from positionbias.analysis.base import Analysis, Labels, Subject
from positionbias.arrays import Key, Tree
from positionbias.config import varied
from positionbias.evaluation.loading import LoadedRun, load, saved_steps
from positionbias.evaluation.statistics import correlation, interval
from positionbias.files import read_json, replacing, safe_name, shortened, write_json, writing
from positionbias.replicas import stream
from positionbias.spec import ConfigError
from positionbias.tasks.base import Condition, find_condition

FOLDER = "analysis"
MOST_NUMBERS = 4096  # of an array, told in JSON
MOST_DIGITS = 18  # of a number on the command line, of which Python takes some thousands
LONGEST = 140  # bytes of a file's name, to which endings are added
LONGEST_OF = 24  # of the replicas in one
TOLD = 8  # replicas that an error names


def parsed(text: str) -> list[Analysis]:
    """The analyses that `--analyses` names, each once."""
    if not text.strip():
        raise ConfigError(
            f"--analyses: {text!r} names none; allowed: such as 'rollout, sink_mass(column=1)', of those that"
            " `python -m positionbias.list analyses` tells."
        )
    found = []
    for node in spec.parse_several(text, "--analyses"):
        with _naming(getattr(node, "name", "")):
            found.append(spec.build("analyses", node, "--analyses"))
    if len({repr(one) for one in found}) < len(found):
        raise ConfigError(f"--analyses: {text!r} has one twice; allowed: each once.")
    return found


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """A refusal tells which of several analyses it is about."""
    try:
        yield
    except ConfigError as error:
        said = str(error).removeprefix("--analyses").lstrip(".: ")
        if not name or name in re.split(r"\W+", said):
            raise
        raise ConfigError(f"--analyses: {name}: {said}") from None


def numbered(text: str) -> list[int] | None:
    """The replicas that `--replicas` names, None for all."""
    return None if text == "all" else _numbers("--replicas", text, "numbers such as '0,2'")


def stepped(folder: pathlib.Path, text: str | None) -> list[int | None]:
    """The steps that `--step` names, None for the newest of the run's checkpoints. ConfigError before any is asked."""
    if text is None:
        return [None]
    saved = saved_steps(folder)
    if text == "all":
        return list(saved) or [None]
    found = _numbers("--step", text, "steps such as '200,400'")
    absent = [step for step in found if step not in saved]
    if absent and saved:
        kept = ", ".join(map(str, saved))
        raise ConfigError(f"--step: {absent[0]} is not allowed; allowed: 'all', or of those with a checkpoint, {kept}.")
    return list(found)


def _numbers(flag: str, text: str, such: str) -> list[int]:
    """The numbers of a list, each once, in their order."""
    parts = [part.strip() for part in text.split(",")]
    found = sorted({int(part) for part in parts if part.isascii() and part.isdigit() and len(part) <= MOST_DIGITS})
    if len(found) < len(parts):
        raise ConfigError(f"{flag}: {text!r} is not allowed; allowed: 'all', or {such}, each once.")
    return found


def label(analysis: Analysis) -> str:
    """The name of its files, but for what the items are of: see `Asker.path`."""
    return safe_name(spec.canonical(analysis))


def prepare(folder: pathlib.Path) -> None:
    """Make the folder of analyses in a run's. Raises WriteError where nothing can be written in it."""
    path = folder / FOLDER
    with writing(path):
        path.mkdir(exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an analysis found: arrays [R, ...] of the trained replicas and of the same as they were drawn."""

    analysis: Analysis
    labels: Labels  # of the axes that have them, layers among them
    trained: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]

    def named(self, axis: str, at: int) -> str:
        """What stands at a place of an axis."""
        return self.labels[axis][at] if axis in self.labels else str(at)


class Asker:
    """Asks analyses of one checkpoint of a run folder. All that can be refused is refused when it is made."""

    def __init__(
        self,
        folder: pathlib.Path,
        wanted: Sequence[Analysis],
        *,
        step: int | None = None,
        condition: str | None = None,
        items: int | None = None,
        replicas: Sequence[int] | None = None,
    ) -> None:
        self.folder, self.wanted = folder, wanted
        self.older = step is not None and step != max(saved_steps(folder), default=step)
        whole = load(folder, step, "all")
        every = list(range(len(whole.keys)))
        self.replicas = None if replicas is None or list(replicas) == every else list(replicas)
        self.run = _asked_of(whole, replicas)
        grid = self.run.task.conditions()
        self.condition: Condition = grid[0]
        if condition is not None:
            self.condition = find_condition(self.run.task, condition, "--condition")
        self.items = items or self.run.config.evaluation.influence_items
        weights, key, own = jax.tree.map(lambda x: x[0], (self.run.weights, self.run.keys, self.run.own))
        one = dataclasses.replace(self.run, replica=0, weights=weights, keys=key, own=own)
        subject = self._subject(one)
        self.layers, self.labels = dict[Analysis, list[int]](), dict[Analysis, Labels]()
        self.given = dict[Analysis, Tree]()
        for analysis in wanted:
            with _naming(spec.canonical(analysis).partition("(")[0]):
                analysis.check(subject)
                found = self.layers[analysis] = analysis.layers(subject)
                given = analysis.given(whole)
                self.given[analysis] = given if replicas is None else _picked(given, replicas)
                self.labels[analysis] = {"layer": tuple(map(str, found)), **analysis.labelled(subject, found)}

    @functools.cached_property
    def _untrained(self) -> dict[str, Tree]:
        return self.run.untrained()

    def _subject(self, run: LoadedRun, given: Tree = ()) -> Subject:
        return Subject(run, self.condition, self.items, given)

    def settings(self, analysis: Analysis) -> dict[str, Any]:
        """What its numbers depend on, but for the run."""
        told = {"step": self.run.step, "condition": self.condition.name, "items": self.items}
        of = "all" if self.replicas is None else self.replicas
        return {"analysis": spec.full(analysis), **told, "of_replicas": of}

    def path(self, analysis: Analysis) -> pathlib.Path:
        """Its JSON: of its own for a condition that was not trained on, an older checkpoint, some of the replicas."""
        name = shortened(label(analysis), LONGEST, label(analysis))
        if self.condition.name != self.run.task.conditions()[0].name:
            name += f"--{safe_name(self.condition.name)}"
        if self.older:
            name += f"--{self.run.step:06d}"
        if self.replicas is not None:
            told = "_".join(map(str, self.replicas))
            name += f"--of_{shortened(told, LONGEST_OF, told)}"
        return self.folder / FOLDER / f"{name}.json"

    def there(self, analysis: Analysis) -> bool:
        """Whether its files are there, of the same checkpoint and items."""
        path = self.path(analysis)
        try:
            found = read_json(path)
        except (OSError, ValueError):
            return False
        wanted = self.settings(analysis)
        whole = isinstance(found, dict) and zipfile.is_zipfile(path.with_suffix(".npz"))
        return whole and {name: found.get(name) for name in wanted} == wanted

    def asked(self) -> Iterator[Asked]:
        """Every analysis, in the order wanted, but for those that are there."""
        layout = self.run.layout
        for analysis in self.wanted:
            if self.there(analysis):
                continue
            ask = jax.jit(layout.over(lambda replica, a=analysis: self._ask(a, *replica)))
            both, told = (self.run.weights, self._untrained), (self.run.keys, self.run.own, self.given[analysis])
            trained, drawn = (jax.device_get(ask(layout.place((weights, *told)))) for weights in both)
            yield Asked(analysis, self.labels[analysis], trained, drawn)

    def _ask(
        self, analysis: Analysis, weights: dict[str, Tree], key: Key[jax.Array, ""], own: dict[str, Tree], given: Tree
    ) -> dict[str, jax.Array]:
        one = self._subject(dataclasses.replace(self.run, replica=0, weights=weights, keys=key, own=own), given)
        return analysis.measure(one, self.layers[analysis], stream(key, f"analysis/{label(analysis)}"))


def _asked_of(run: LoadedRun, replicas: Sequence[int] | None) -> LoadedRun:
    """The same run with only these replicas, None: all; they are to differ in nothing but their seeds."""
    count = len(run.keys)
    chosen = list(range(count) if replicas is None else replicas)
    wrong = [i for i in chosen if not 0 <= i < count]
    if wrong:
        raise ConfigError(f"--replicas: {wrong[0]} is not allowed; allowed: 0 to {count - 1}, as the run has {count}.")
    grid = varied.combinations(run.config.train.vary)
    mixed = [one for one in grid if set(one.replicas) & set(chosen)]
    if len(mixed) > 1:
        told = ",".join(map(str, mixed[0].replicas[:TOLD]))
        asked = ",".join(map(str, chosen[:TOLD])) + (f" and {len(chosen) - TOLD} more" if len(chosen) > TOLD else "")
        raise ConfigError(
            f"--replicas: {asked} differ in {' and '.join(mixed[0].values)}; allowed: those of one"
            f" combination, such as {told} with {mixed[0].label}."
        )
    run = run if replicas is None else run.chosen(replicas)
    if not run.own["task"]:
        return run
    task = varied.task_of(run.config, chosen[0], run.task)
    return dataclasses.replace(
        run, experiment=dataclasses.replace(run.experiment, task=task), own={**run.own, "task": {}}
    )


def _picked(tree: Tree, replicas: Sequence[int]) -> Tree:
    """Arrays of these replicas alone."""
    at = np.asarray(replicas)
    return jax.tree.map(lambda x: x[at], tree)


def write(path: pathlib.Path, one: Asked, settings: dict[str, Any]) -> None:
    """Write a JSON with means and intervals, and beside it an npz with all numbers."""
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        held = io.BytesIO()
        np.savez(held, **one.trained, **{f"at_init/{name}": x for name, x in one.drawn.items()})  # type: ignore[arg-type]
        with replacing(path.with_suffix(".npz")) as file:
            file.write(held.getvalue())
            path.unlink(missing_ok=True)  # which would tell other numbers, should the new one not come to be written
    told = {
        **settings,
        "about": inspect.getdoc(type(one.analysis)),
        "shown": one.analysis.shown,
        "labels": {axis: list(names) for axis, names in one.labels.items()},
        "replicas": len(next(iter(one.trained.values()))),
        "arrays": {name: _told(axes, one.trained[name], one.drawn[name]) for name, axes in one.analysis.axes.items()}
        | {name: {"axes": [], "sizes": [], **both} for name, both in across(one).items()},
    }
    write_json(path, told)


def _told(axes: tuple[str, ...], trained: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Axes, sizes, and mean and interval over replicas of every number, row by row; without those of a large array."""
    told: dict[str, Any] = {"axes": list(axes), "sizes": list(trained.shape[1:])}
    if trained[0].size > MOST_NUMBERS:
        return told
    return told | {"numbers": _intervals(trained), "at_init": _intervals(drawn)}


def across(one: Asked) -> dict[str, dict[str, list[dict[str, float | None]]]]:
    """Of every name in `Analysis.across` the correlation over replicas, trained and as they were drawn."""
    both = (("numbers", one.trained), ("at_init", one.drawn))
    return {
        name: {told: [correlation(*(list(map(float, arrays[of])) for of in pair)).to_dict()] for told, arrays in both}
        for name, pair in one.analysis.across.items()
    }


def _intervals(values: np.ndarray) -> list[dict[str, float | None]]:
    flat = values.reshape(len(values), -1)
    return [interval(list(map(float, flat[:, i]))).to_dict() for i in range(flat.shape[1])]
