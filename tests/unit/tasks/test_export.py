"""A frozen evaluation set: what is written is what is drawn, and measuring on it is measuring on the device."""

import sys

import jax
import numpy as np
import pytest

from positionbias import files, spec
from positionbias.config.build import build
from positionbias.evaluation.by_position import Evaluator
from positionbias.replicas import Layout, replica_keys, stream
from positionbias.spec import ConfigError
from positionbias.tasks import export, exported
from positionbias.tasks.base import find_condition
from positionbias.tokens import UNTOLD
from positionbias.training.auto import Auto
from positionbias.training.program import Program

TASK = "associative_recall(pairs=3, keys=3, values=4, delays=2, shift=2)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    arguments = ["--task", TASK, "--data_dir", str(home), "--examples", "300", "--seed", "5", "--replica", "1"]
    assert export.main([*arguments, "--condition", "shifted"]) == 0
    return home / "associative_recall" / exported.VERSION


def test_what_is_read_back_is_what_was_drawn(folder):
    found, task = exported.read(folder), spec.build("tasks", TASK, "task")
    assert (found.folder, found.task, found.condition.name) == (folder, task, "shifted")
    assert (found.seed, found.replica) == (5, 1)
    batch = found.batch
    drawn = export.drawn(task, task.conditions()[1], 300, 5, 1)
    assert batch.inputs.shape == (300, 10)
    for name in batch._fields[:3] + batch._fields[4:]:
        np.testing.assert_array_equal(getattr(batch, name), drawn[name])
        assert getattr(batch, name).dtype == drawn[name].dtype
    for name, leaf in batch.tokens._asdict().items():
        np.testing.assert_array_equal(leaf, UNTOLD[name] if name in UNTOLD else drawn[f"tokens_{name}"][0])
    assert "tensorflow" not in sys.modules


def test_tfds_reads_it_as_any_other_dataset(folder):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(folder)).as_data_source("shifted")
    assert len(source) == 300
    np.testing.assert_array_equal(source[7]["inputs"], exported.read(folder).batch.inputs[7])
    named = tfds.data_source("associative_recall", split="shifted", data_dir=str(folder.parents[1]))
    np.testing.assert_array_equal(named[299]["query"], exported.read(folder).batch.query[299])


def test_items_are_drawn_by_their_number():
    """As they always were, so that what was published is drawn again."""
    task = spec.build("tasks", TASK, "task")
    condition = task.conditions()[1]
    key = stream(replica_keys(5, 2)[1], f"{export.STREAM}/shifted")
    chunk = jax.jit(lambda index: task.batch(jax.random.fold_in(key, index), condition, 256))
    inputs = np.concatenate([chunk(index).inputs for index in range(2)])
    np.testing.assert_array_equal(export.drawn(task, condition, 300, 5, 1)["inputs"], inputs[:300])


VECTORS = {"objective": "squared_error", "model.inputs": "vector"}
CASES = {
    "tokens": (TASK, {}),
    "vectors": ("in_context_regression(dimension=2, examples=3)", VECTORS),
    "world": ("modular_addition(modulus=5)", {}),
    "own tokens": ("multi_hop(documents=4, entities=8, relations=3, gaps=[1], fillers=3)", {}),
    "text": ("text(window=6)", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_measuring_on_it_is_measuring_on_the_device(case, tmp_path, tiny):
    """In batches of 16 as in the 256 that they were drawn in."""
    text, more = CASES[case]
    task, folder = spec.build("tasks", text, "task"), tmp_path / "items" / exported.VERSION
    conditions = task.conditions()[1:2] or task.conditions()
    (condition,) = conditions
    export.export(task, condition, folder, "test", 40, 5, 1)
    experiment = build(tiny({"task": text, "seed": 5, **more, "evaluation.items": 40}))
    assert experiment.config.evaluation.batch_size == 16
    program, keys = Program(experiment, Auto(Layout("loop"), 8, 1)), replica_keys(5, 2)
    weights = jax.jit(jax.vmap(program.fresh))(program.replicas())

    def rows(stored):
        made = Evaluator(experiment, Layout("loop"), keys, export.STREAM, conditions=conditions, stored=stored)
        return made.rows(weights)

    fresh, stored = rows(None), rows({condition.name: exported.read(folder).batch})
    assert set(fresh) == set(stored)
    assert (stored["replica"] == 1).sum() == 40 * (stored["query"].size // 80)
    for column in set(fresh) - {"influence", "conditions", "items", "axes"}:
        one, other = (found[column][found["replica"] == 1] for found in (fresh, stored))
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5, err_msg=column)
    assert np.isfinite(stored["influence"]).all()
    np.testing.assert_allclose(stored["influence"][1], fresh["influence"][1], rtol=1e-4, atol=1e-6)
    assert not np.array_equal(stored["influence"][0], fresh["influence"][0]), "items of another replica"


def test_conditions_of_the_same_items_are_exported_as_pairs():
    task = spec.build("tasks", "context_or_prior", "test")
    use, ignore = (export.drawn(task, find_condition(task, name, "test"), 32, 0, 0) for name in ("use", "ignore"))
    told = np.flatnonzero((use["inputs"] != ignore["inputs"]).any(axis=0))
    assert len(told) == 1, "they differ in the token that tells what to do"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], ("train", "train")),
        (["--split", "test"], ("train", "test")),
        (["--split", "shifted"], ("shifted", "shifted")),
        (["--condition", "shifted"], ("shifted", "shifted")),
        (["--condition", "shifted", "--split", "train"], ("shifted", "train")),
    ],
)
def test_a_split_is_called_by_the_condition_unless_told(arguments, told, tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(
        export, "export", lambda task, condition, folder, split, *_: written.append((condition.name, split))
    )
    assert export.main(["--task", TASK, "--data_dir", str(tmp_path), *arguments]) == 0
    assert written == [told]
    assert f", condition {told[0]}: " in capsys.readouterr().out


def test_a_set_that_is_there_is_not_written_again(folder):
    with pytest.raises(ConfigError, match="is there already; allowed: another --name or folder"):
        export.main(["--task", TASK, "--data_dir", str(folder.parents[1]), "--examples", "3"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--examples", "0"], "--examples: 0 is not allowed; allowed: a whole number from 1"),
        (["--seed", "-1"], "--seed: -1 is not allowed; allowed: a whole number from 0"),
        (["--name", "../x"], "--name: '../x' is not allowed"),
        (["--data_dir="], "--data_dir: '' is not allowed; allowed: the path of a folder."),
        (["--split", "a b"], "--split: 'a b' is not allowed"),
        (["--split", "all"], "--split: 'all' is not allowed, it means every split"),
        (["--condition", "shiftd"], "unknown condition 'shiftd', did you mean 'shifted'?"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = [] if "--data_dir=" in arguments else ["--data_dir", "data"]
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")):
        export.main(["--task", TASK, *where, *arguments])
    assert list(tmp_path.iterdir()) == []


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "drawn", lambda *given: {"inputs": np.zeros((1, 3))})
    with pytest.raises(IndexError):
        export.main(["--task", TASK, "--data_dir", str(tmp_path / "deep" / "data"), "--examples", "2"])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_a_folder_is_told_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(files.WriteError, match=r"^cannot write '.*file/associative_recall/1.0.0': Not a directory.$"):
        export.main(["--task", TASK, "--data_dir", str(tmp_path / "file"), "--examples", "2"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_tfds_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    missing = "needs tensorflow-datasets, which is not installed; allowed: pip install -e '.[data]' in the checkout."
    with pytest.raises(ConfigError) as caught:
        export.main(["--task", TASK, "--data_dir", str(tmp_path)])
    assert str(caught.value) == f"positionbias.tasks.export: {missing}"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError) as caught:
        exported.read(tmp_path)
    assert str(caught.value) == f"--data_dir: {missing}"


@pytest.mark.parametrize(
    ("task", "told"), [(TASK, []), ("modular_addition(modulus=5)", ["They are of the world of seed 3, replica 1; "])]
)
def test_whose_world_the_items_are_of_is_told(task, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "export", lambda *given: None)
    export.main(["--task", task, "--data_dir", str(tmp_path), "--seed", "3", "--replica", "1"])
    more = "of a run of that seed positionbias.evaluate measures on them that replica alone."
    assert capsys.readouterr().out.splitlines()[1:] == [line + more for line in told]
