"""Reading an evaluation set back: what is not one, is damaged, or says that it is of another task."""

import functools
import json
import shutil

import numpy as np
import pytest

from positionbias import spec
from positionbias.spec import ConfigError
from positionbias.tasks import export, exported

TASK = "associative_recall(pairs=3, keys=3, values=4, delays=2, shift=2)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    assert export.main(["--task", TASK, "--data_dir", str(home), "--examples", "4"]) == 0
    return home / "associative_recall" / exported.VERSION


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "associative_recall" / exported.VERSION)


def records(folder):
    (path,) = folder.glob("*.array_record*")
    return path


def refused(folder):
    """Why it is no evaluation set."""
    with pytest.raises(ConfigError) as caught:
        exported.read(folder)
    start, end = f"--data_dir: '{folder}' is not an exported evaluation set (", f", .../NAME/{exported.VERSION}."
    told = str(caught.value)
    assert told.startswith(start)
    assert told.endswith(end)
    return told.removeprefix(start).partition("); allowed: the folder that positionbias.tasks.export named")[0]


def test_the_one_set_below_a_folder_is_found_and_several_are_named(folder, tmp_path):
    for given in (folder, folder.parent, folder.parents[1]):
        assert exported.find(given) == folder
    for name in ("b", "a"):
        (tmp_path / name / exported.VERSION).mkdir(parents=True)
        (tmp_path / name / exported.VERSION / exported.INFO).write_text("{}")
    with pytest.raises(ConfigError) as caught:
        exported.find(tmp_path)
    near = " or ".join(f"'{tmp_path / name / exported.VERSION}'" for name in "ab")
    assert str(caught.value) == f"--data_dir: '{tmp_path}' holds 2 evaluation sets, did you mean {near}?"
    assert exported.find(tmp_path / "nowhere") == tmp_path / "nowhere"


def test_a_folder_that_holds_something_else(tmp_path):
    assert "Could not read dataset info" in refused(tmp_path)
    (tmp_path / exported.INFO).write_text("{}")
    refused(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: records(folder).unlink(),
        lambda folder: records(folder).write_bytes(b""),
        lambda folder: records(folder).write_bytes(records(folder).read_bytes()[:-10]),
        lambda folder: records(folder).write_bytes(records(folder).read_bytes()[:65536]),
        lambda folder: records(folder).write_bytes(b"x" * 70_000),
        lambda folder: (folder / exported.INFO).write_text("{"),
        lambda folder: (folder / "features.json").write_text("{}"),
    ],
    ids=["no records", "empty", "cut", "cut to a block", "others", "no info", "no features"],
)
def test_a_damaged_file(copy, damage):
    damage(copy)
    assert refused(copy)


def edited(folder, **changes):
    path = folder / "metadata.json"
    told = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": None}, "its metadata say of 'task' None"),
        ({"task": 7}, "its metadata say of 'task' 7"),
        ({"condition": None}, "its metadata say of 'condition' None"),
        ({"condition": 3}, "its metadata say of 'condition' 3"),
        ({"seed": None}, "its metadata say of 'seed' None"),
        ({"seed": "0"}, "its metadata say of 'seed' '0'"),
        ({"replica": None}, "its metadata say of 'replica' None"),
        ({"task": "asociative_recall"}, "task: unknown task 'asociative_recall', did you mean 'associative_recall'?"),
        ({"condition": "train,shifted"}, "condition: unknown condition 'train,shifted'"),
        ({"condition": "shifted"}, "inputs is int32[8], in shifted of associative_recall("),
        ({"task": TASK.replace("pairs=3", "pairs=2")}, "inputs is int32[8], in train of associative_recall("),
        ({"task": TASK.replace("delays=2", "delays=2, queries=2")}, "query is int32[1], in train of"),
        ({"task": TASK.replace("keys=3, values=4", "keys=3, values=2")}, "inputs goes from 0 to "),
        ({"task": "in_context_regression"}, "inputs is int32[8], in train of in_context_regression float32[41, 6]"),
    ],
)
def test_metadata_of_something_else(copy, changes, told):
    edited(copy, **changes)
    assert refused(copy).startswith(told)


@functools.cache
def four():
    """Items of the task, drawn once."""
    task = spec.build("tasks", TASK, "task")
    return export.drawn(task, task.conditions()[0], 4, 0, 0)


def batch_and(**changes):
    """Rows as TFDS gives them, some fields changed, with the task and the condition that they are checked against."""
    task = spec.build("tasks", TASK, "task")
    condition = task.conditions()[0]
    columns = four() | changes
    return [{name: column[item] for name, column in columns.items()} for item in range(4)], task, condition


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inputs": np.zeros((4, 8), np.float32)}, "inputs is float32[8], in train of"),
        ({"query": np.full((4, 1), 8, np.int32)}, "query goes from 8 to 8, in train of"),
        ({"evidence": np.full((4, 1, 2), -2, np.int32)}, "evidence goes from -2 to -2"),
        ({"source": np.full((4, 1), 8, np.int32)}, "source goes from 8 to 8"),
        ({"query_slot": np.full((4, 1), 99, np.int32)}, "query_slot goes from 99 to 99"),
        ({"evidence_slot": np.full((4, 1), 3, np.int32)}, "evidence_slot goes from 3 to 3"),
        ({"targets": np.full((4, 8), 10**6, np.int32)}, "targets goes from 1000000 to 1000000"),
        ({"tokens_position": np.zeros((4, 8), np.int32)}, "its tokens are not laid out as in train of"),
        ({"order": [None] * 4}, "order is missing in some items"),
        ({"more": np.zeros((4, 1))}, "it has other fields than an item"),
    ],
)
def test_items_that_are_not_the_tasks(changes, told):
    exported._checked(*batch_and())
    with pytest.raises(ValueError, match="^" + told.replace("[", r"\[")):
        exported._checked(*batch_and(**changes))


def test_a_set_without_items():
    with pytest.raises(ValueError, match=r"^it has no items$"):
        exported._checked([], *batch_and()[1:])
