"""`python -m positionbias.tasks.export --task SPEC --data_dir DIR`: a frozen evaluation set, as a TFDS dataset.

The items are those that `positionbias.evaluate` draws for one replica of a run. They are written as array_record files
that `tfds.data_source` reads, here or anywhere; `positionbias.evaluate --data_dir` measures a run on them again.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import shutil
import tempfile
from typing import Any

import numpy as np

from positionbias import files, runtime, spec
from positionbias.config import cli
from positionbias.spec import ConfigError

STREAM = "evaluation/again"  # what `positionbias.evaluate` draws from
AT_ONCE = 256  # sequences drawn at once
MOST = 10_000_000
NAME = re.compile(r"[a-z][a-z0-9_]{0,79}")  # what TFDS takes for a dataset's or a split's name


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser(
        "python -m positionbias.tasks.export", "Write a frozen evaluation set that tfds.data_source reads."
    )
    made.add_argument("--task", required=True, metavar="SPEC", help="the task")
    made.add_argument("--data_dir", required=True, help="folder of datasets; this one goes to NAME/VERSION")
    made.add_argument("--examples", type=int, default=1000, help="number of examples; default: 1000")
    made.add_argument("--condition", help="one of the task's conditions; default: that named by --split, or trained on")
    made.add_argument("--split", help="name of the split; default: the condition's name")
    made.add_argument("--name", help="name of the dataset; default: the task's name")
    made.add_argument("--seed", type=int, default=0, help="seed of the run whose items these are; default: 0")
    made.add_argument("--replica", type=int, default=0, help="replica of that run; default: 0")
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, _ = cli.parse_command_line(parser(), argv)
    from positionbias.tasks.exported import VERSION, has_world

    for flag, most in (("examples", MOST), ("seed", spec.LARGEST), ("replica", 4095)):
        low, value = int(flag == "examples"), getattr(given, flag)
        if not low <= value <= most:
            raise ConfigError(f"--{flag}: {value} is not allowed; allowed: a whole number from {low} to {most}.")
    task = spec.build("tasks", given.task, "--task")
    name = given.name or task.spec_name
    condition = _condition(task, given.condition, given.split)
    split = given.split or condition.name
    for flag, value in (("name", name), ("split", split)):
        if not NAME.fullmatch(value):
            raise ConfigError(
                f"--{flag}: {value!r} is not allowed; allowed: lower-case letters, digits and '_', a letter first."
            )
    if split == "all":
        raise ConfigError("--split: 'all' is not allowed, it means every split; allowed: another name.")
    folder = cli.folder(given.data_dir, "--data_dir") / name / VERSION
    if folder.exists():
        raise ConfigError(f"--data_dir: {str(folder)!r} is there already; allowed: another --name or folder.")
    runtime.configure()
    export(task, condition, folder, split, given.examples, given.seed, given.replica)
    print(f"{given.examples} examples of {spec.canonical(task)}, condition {condition.name}: {folder}")
    if has_world(task):
        print(
            f"They are of the world of seed {given.seed}, replica {given.replica}; of a run of that seed"
            " positionbias.evaluate measures on them that replica alone."
        )
    return 0


def _condition(task: Any, named: str | None, split: str | None) -> Any:
    """The condition named, else the one that the split is called by, else the one trained on."""
    from positionbias.tasks.base import find_condition

    if named is not None:
        return find_condition(task, named, "--condition")
    grid = task.conditions()
    return next((one for one in grid if one.name == split), grid[0])


def export(task: Any, condition: Any, folder: pathlib.Path, split: str, examples: int, seed: int, replica: int) -> None:
    """Draw the items and write them to `folder`, DATA_DIR/NAME/VERSION; nothing is left of it where that fails."""
    columns = drawn(task, condition, examples, seed, replica)
    from positionbias.tasks.exported import import_tfds

    tfds = import_tfds("positionbias.tasks.export")
    features = {
        name: tfds.features.Tensor(shape=column.shape[1:], dtype=column.dtype.type) for name, column in columns.items()
    }
    told = {"task": spec.full(task), "condition": condition.name, "seed": seed, "replica": replica}

    class Frozen(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        name = folder.parent.name
        VERSION = tfds.core.Version(folder.name)
        pkg_dir_path = None

        def _info(self) -> Any:
            metadata = tfds.core.MetadataDict(told)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), metadata=metadata, disable_shuffling=True
            )

        def _split_generators(self, manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples()}

        def _generate_examples(self) -> Any:
            for index in range(examples):
                yield index, {name: column[index] for name, column in columns.items()}

    new = next((path for path in reversed(folder.parents) if not path.exists()), folder)
    try:
        # Nothing is downloaded: standard output is where TFDS says so, and it makes a folder for it all the same.
        with files.writing(folder), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as empty:
            builder = Frozen(data_dir=str(folder.parents[1]), file_format="array_record")
            builder.download_and_prepare(download_dir=empty)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def drawn(task: Any, condition: Any, examples: int, seed: int, replica: int) -> dict[str, np.ndarray]:
    """Every field of the items by name, those of `tokens` as `tokens_NAME`, a leading axis of examples on each."""
    import jax

    from positionbias.replicas import replica_keys, stream
    from positionbias.tasks.base import flat, item_keys, world_of

    keys = replica_keys(seed, replica + 1)[replica:]
    world = world_of(task, keys[0])
    key = stream(keys[0], f"{STREAM}/{condition.stream}")
    draw = jax.jit(lambda numbers, world: task.batch_of(item_keys(key, numbers), condition, world))
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, examples, AT_ONCE):
        batch = jax.device_get(draw(start + np.arange(AT_ONCE), world))
        for name, leaf in flat(batch).items():
            parts.setdefault(name, []).append(
                np.broadcast_to(leaf, (AT_ONCE, *leaf.shape[-1:])) if leaf.ndim == 1 else leaf
            )
    return {name: np.concatenate(part)[:examples] for name, part in parts.items()}


if __name__ == "__main__":
    cli.run_entry(main)
