"""Reading an exported evaluation set back: which one it is, and whether it fits the task that it says it is of."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from positionbias import errors, spec
from positionbias.files import read_json
from positionbias.spec import ConfigError
from positionbias.tasks.base import Batch, Condition, Size, Task, find_condition, flat, world_of
from positionbias.tasks.corpora import INSTALL
from positionbias.tokens import UNTOLD, Tokens

VERSION = "1.0.0"
INFO = "dataset_info.json"  # what TFDS knows a dataset's folder by
FEATURES = "features.json"  # in which it looks up classes by their names
OURS = "tensorflow_datasets.core.features."  # of others it would import the modules, which runs them


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """What an export wrote: the items of a condition of a task, and which replica of which run they were drawn for."""

    folder: pathlib.Path
    task: Task
    condition: Condition
    seed: int
    replica: int
    batch: Batch  # a leading axis of items on all but shared tokens


def has_world(task: Task) -> bool:
    """Whether each replica has a world of its own, so that its items hold for it alone."""
    return bool(jax.tree.leaves(jax.eval_shape(task.world, jax.random.key(0))))


def find(folder: pathlib.Path) -> pathlib.Path:
    """The one evaluation set in `folder` or below it: DATA_DIR/NAME/VERSION from DATA_DIR. Raises ConfigError."""
    if not (folder / INFO).is_file():
        below = (found for depth in (VERSION, f"*/{VERSION}") for found in folder.glob(f"{depth}/{INFO}"))
        found = sorted(path.parent for path in below)
        if len(found) == 1:
            return found[0]
        if found:
            near = " or ".join(repr(str(path)) for path in found[: errors.FEW])
            raise ConfigError(f"--data_dir: {str(folder)!r} holds {len(found)} evaluation sets, did you mean {near}?")
    return folder


def read(folder: pathlib.Path) -> Exported:
    """What an export wrote to `folder`. Raises ConfigError for a folder that holds something else, or is damaged."""
    tfds = import_tfds("--data_dir")

    def refuse(reason: str) -> ConfigError:
        return ConfigError(
            f"--data_dir: {str(folder)!r} is not an exported evaluation set ({reason.rstrip('.')});"
            f" allowed: the folder that positionbias.tasks.export named, .../NAME/{VERSION}."
        )

    try:
        foreign = sorted(name for name in _classes(read_json(folder / FEATURES)) if not name.startswith(OURS))
    except (OSError, ValueError):
        raise refuse(f"its {FEATURES} cannot be read") from None
    if foreign:
        raise refuse(f"its items are of the class {spec.show(foreign[0])}")
    try:
        builder = tfds.builder_from_directory(str(folder))
        told, splits = dict(builder.info.metadata or {}), list(builder.info.splits)
        rows = list(builder.as_data_source(splits[0])) if len(splits) == 1 else []
    except Exception as error:  # whatever TFDS and the readers of records below it raise
        raise refuse((str(error).splitlines() or [type(error).__name__])[0][:160]) from None
    if len(splits) != 1:
        raise refuse(f"it has {len(splits)} splits")
    for name, kind in (("task", str), ("condition", str), ("seed", int), ("replica", int)):
        if type(told.get(name)) is not kind:
            raise refuse(f"its metadata say of {name!r} {spec.show(told.get(name))}")
    try:
        task = spec.build("tasks", told["task"], "task")
        condition = find_condition(task, told["condition"], "condition")
    except ConfigError as error:
        raise refuse(str(error)) from None
    try:
        batch = _checked(rows, task, condition)
    except ValueError as error:
        raise refuse(str(error)) from None
    return Exported(folder, task, condition, told["seed"], told["replica"], batch)


def _classes(features: Any) -> Iterator[str]:
    """The names of classes anywhere in a `features.json`."""
    if isinstance(features, dict):
        if "pythonClassName" in features:
            yield str(features["pythonClassName"])
        features = list(features.values())
    if isinstance(features, list):
        for inner in features:
            yield from _classes(inner)


def import_tfds(asker: str) -> Any:
    """The module `tensorflow_datasets`; ConfigError with the name of who asked if it is not there."""
    try:
        import tensorflow_datasets
    except ImportError:
        raise ConfigError(f"{asker}: needs tensorflow-datasets, which is not installed; allowed: {INSTALL}.") from None
    tensorflow_datasets.disable_progress_bar()
    return tensorflow_datasets


def _checked(rows: list[dict[str, Any]], task: Task, condition: Condition) -> Batch:
    """The items as a batch of that condition of that task; ValueError says in what they are not."""
    if not rows:
        raise ValueError("it has no items")

    def one(key: jax.Array) -> Batch:
        return task.batch_of(key[None], condition, world_of(task, key))

    wanted = jax.eval_shape(one, jax.random.key(0))
    fields = flat(wanted)
    if set(rows[0]) != set(fields):
        raise ValueError("it has other fields than an item")
    columns = {}
    for name, leaf in fields.items():
        values = [row[name] for row in rows]
        if any(not isinstance(value, np.ndarray | np.generic) for value in values):
            raise ValueError(f"{name} is missing in some items")
        shape = leaf.shape if name.startswith("tokens_") and task.shared_tokens else leaf.shape[1:]
        for value in values:
            if value.shape != shape or value.dtype != leaf.dtype:
                has, should = (
                    f"{dtype}{list(size)}" for size, dtype in ((value.shape, value.dtype), (shape, leaf.dtype))
                )
                raise ValueError(f"{name} is {has}, in {condition.name} of {spec.canonical(task)} {should}")
        columns[name] = np.stack(values)
    stored = {name: columns.pop(f"tokens_{name}") for name in Tokens._fields if name not in UNTOLD}
    tokens = Tokens(**stored, **{name: np.full_like(stored["index"], value) for name, value in UNTOLD.items()})
    if task.shared_tokens:
        if any((leaf != own).any() for leaf, own in zip(tokens, task.tokens(condition), strict=True)):
            raise ValueError(f"its tokens are not laid out as in {condition.name} of {spec.canonical(task)}")
        tokens = Tokens(*(leaf[0] for leaf in tokens))
    batch = Batch(**columns, tokens=tokens)  # type: ignore[arg-type]
    _check_ranges(batch, task, condition)
    return batch


def _check_ranges(batch: Batch, task: Task, condition: Condition) -> None:
    """Raise ValueError for a token that the task does not have, or a row or slot beyond its last."""
    length, slots = task.length(condition), task.slots(condition)
    bounds = {
        "inputs": (0, _tokens(task.input)),
        "targets": (0, _tokens(task.output)),
        "query": (0, length),
        "evidence": (-1, length),
        "source": (-1, length),
        "query_slot": (0, slots["query"]),
        "evidence_slot": (0, slots["evidence"]),
    }
    for name, (low, end) in bounds.items():
        values = getattr(batch, name)
        if end is not None and not (low <= values.min() and values.max() < end):
            told = f"{name} goes from {values.min()} to {values.max()}"
            raise ValueError(f"{told}, in {condition.name} of {spec.canonical(task)} from {low} to {end - 1}")


def _tokens(size: Size) -> int | None:
    return size.size if size.kind == "tokens" else None
