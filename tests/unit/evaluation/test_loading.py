"""A run from its folder alone."""

import re
import shutil
import sys
import warnings

import jax
import numpy as np
import pytest

import positionbias
from positionbias import evaluate, launch
from positionbias.config import cli
from positionbias.evaluation.loading import load
from positionbias.spec import ConfigError
from positionbias.tasks.base import Size
from positionbias.training import checkpoint
from positionbias.training.loop import train

pytestmark = pytest.mark.usefixtures("no_influence")

TASK = "associative_recall(pairs=2, keys=4, values=4, delays=2, shift=2)"
SHORTER, LONGER = TASK.replace("shift=2", "shift=1"), TASK.replace("shift=2", "shift=3")
TOO_LONG = "positions up to 8 are needed, but model.position = learned(length=None) was trained on 8"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loaded") / "run"


@pytest.fixture
def run(tiny, folder):
    """A run with a table of learned positions and two checkpoints, at 2 and at 4."""
    if not folder.exists():
        config = tiny({"task": TASK, "train.steps": 4, "checkpoint.every": 2, "evaluation.items": 8})
        train(config, folder, [], lambda line: None)
    return folder


def test_outputs_are_computed_in_full_precision_whatever_the_session_says(run):
    loaded = load(run)
    batch = loaded.sample(2)
    with jax.default_matmul_precision("bfloat16"):
        program = str(jax.make_jaxpr(lambda x: loaded.apply(batch._replace(inputs=x))[0])(batch.inputs))
    assert "HIGHEST" in program
    assert program.count("dot_general[") == program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")


def test_a_damaged_checkpoint_is_warned_of_once_and_the_one_before_read_once(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000004" / "mark.json").unlink()
    read, steps_read = checkpoint._read_state, []
    monkeypatch.setattr(
        checkpoint, "_read_state", lambda home, step, told: steps_read.append(step) or read(home, step, told)
    )
    with pytest.warns(UserWarning, match="skipped checkpoint 4 has no mark") as told:
        loaded = load(tmp_path / "run")
    assert (loaded.step, steps_read, len(told)) == (2, [2], 1)
    with pytest.raises(ConfigError, match=r"^step: checkpoint 4 has no mark: .*; allowed in .*: 2\.$"):
        load(tmp_path / "run", step=4)


def test_only_whole_checkpoints_are_offered(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "000004" / "state" / "state" / "manifest.ocdbt").write_bytes(b"")
    for step, said in ((3, "is not there"), (4, "cannot be read")):
        with pytest.raises(ConfigError, match=rf"^step: checkpoint {step}.* {said}.*; allowed in '.*/run': 2\.$"):
            load(tmp_path / "run", step=step)
    (checkpoints / "000002" / "mark.json").write_text("[" * 100_000)
    with pytest.raises(
        ConfigError, match=r"^step: checkpoint 2: its mark .*; allowed in .*: none, no step is whole\.$"
    ):
        load(tmp_path / "run", step=2)
    with pytest.raises(
        ConfigError,
        match=r"^workdir: '.*/run' has no whole checkpoint: no checkpoint can be restored, of 2, 4 \(check.* 4.*\)\.$",
    ):
        load(tmp_path / "run")
    shutil.rmtree(checkpoints)
    with pytest.raises(ConfigError, match=r"^workdir: .* has no whole checkpoint: the run has not saved yet\.$"):
        load(tmp_path / "run")


def test_evaluating_past_a_damaged_checkpoint_says_so_in_a_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "set_up", lambda config: None)  # devices are set up for the whole test session
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000004" / "mark.json").write_text("{")
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--items", "4", "--label", "again"]) == 0
    told = capsys.readouterr()
    assert told.err == "skipped checkpoint 4: its mark cannot be read.\n"
    assert "evaluated at step 2 of 4" in told.out


def test_the_newest_checkpoint_is_loaded_without_a_word(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert positionbias.load(run).step == 4
    assert load(run, step=2).step == 2


def test_a_shorter_task_uses_the_first_of_the_trained_positions(run):
    loaded = load(run, task=SHORTER)
    assert loaded.apply(loaded.sample(5, "shifted"), condition="shifted")[0].shape[:2] == (5, 7)
    tables = [jax.tree.leaves(load(run, task=t).weights) for t in (None, SHORTER)]
    for a, b in zip(*tables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_longer_task_than_was_trained_is_refused(run):
    with pytest.raises(ConfigError, match=f"^task: {re.escape(TOO_LONG)}; allowed: a task no longer"):
        load(run, task=LONGER)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (
            "inverse_permutation(n=4, alphabet=6)",
            "inverse_permutation(n=4, alphabet=6) has a vocabulary of 10 tokens, but the run was trained with a"
            " vocabulary of 9 tokens; allowed: the sizes trained with, as in associative_recall(pairs=2, ",
        ),
        ("asociative_recall", "unknown task 'asociative_recall', did you mean 'associative_recall'?"),
        (LONGER, TOO_LONG),
    ],
)
def test_evaluating_another_task_is_refused_by_the_name_of_its_flag(run, monkeypatch, capsys, task, sentence):
    monkeypatch.setattr(launch, "set_up", lambda config: None)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--workdir", str(run), "--task", task])
    with pytest.raises(SystemExit):
        cli.run_entry(evaluate.main)
    assert capsys.readouterr().err.startswith(f"error: --task: {sentence}")


@pytest.mark.parametrize("lengths", ["2x", "1x,2x"])
def test_lengths_beyond_the_table_are_refused_by_their_own_name(run, monkeypatch, lengths):
    monkeypatch.setattr(launch, "set_up", lambda config: None)
    told = TOO_LONG.replace("up to 8", "up to 11")
    with pytest.raises(ConfigError, match=f"^--lengths: 2x: {re.escape(told)}"):
        evaluate.main(["--workdir", str(run), "--lengths", lengths])


def test_kinds_are_told_with_their_sizes():
    class Map:
        input, output = Size("vectors", 3), Size("tokens", 5)

    assert evaluate._sizes(Map) == "vectors of 3 features as inputs and a vocabulary of 5 tokens as targets"


def test_a_batch_goes_with_its_condition(run):
    loaded = load(run)
    batch = loaded.sample(3, "shifted")
    assert loaded.apply(batch, condition="shifted")[0].shape[:2] == (3, 8)
    with pytest.raises(ConfigError, match=r"^batch: sequences of 8 rows; allowed: 6 in condition 'train'"):
        loaded.apply(batch)
    with pytest.raises(ConfigError, match="condition"):
        loaded.apply(batch, condition="none")


@pytest.mark.parametrize(("objective", "row"), [("next_token", 2), ("masked_denoising", 3)])
def test_answers_stand_in_the_rows_told(tiny, tmp_path, objective, row):
    """An answer that stands in the last input is said by the row before, or where it is hidden."""
    mask = "causal" if objective == "next_token" else "bidirectional"
    task = {"task": "reversal(pairs=4, both=2, begin=True)", "objective": objective, "model.mask": mask}
    train(tiny({**task, "train.steps": 0, "evaluation.items": 8}), tmp_path / "run", [], lambda line: None)
    loaded = load(tmp_path / "run")
    batch = loaded.sample(4)
    assert loaded.answer_rows(batch).tolist() == [[row]] * 4
    assert batch.query.tolist() == [[2]] * 4


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"size": 0}, "size = 0 is not allowed; allowed: a whole number from 1 to 2147483647."),
        ({"size": 1.5}, "size = 1.5 is not allowed"),
        ({"size": True}, "size = True is not allowed"),
        ({"size": 2, "seed": 2**70}, "seed = 1180591620717411303424 is not allowed"),
        ({"size": 2, "condition": ["train"]}, "condition: unknown condition ['train']"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(run, how, said):
    with pytest.raises(ConfigError) as error:
        load(run).sample(**how)
    assert str(error.value).startswith(said)


def test_what_a_model_cannot_read_is_refused(run):
    loaded = load(run)
    batch = loaded.sample(2)
    cases = [
        (None, {}, "batch: NoneType is not allowed; allowed: a Batch"),
        (batch._replace(inputs=batch.inputs + 100), {}, "batch: inputs from 10"),
        (batch._replace(inputs=batch.inputs - 100), {}, "batch: inputs from -"),
        (batch._replace(inputs=batch.inputs[:, :2]), {}, "batch: inputs are int32 of shape (2, 2); allowed: tokens of"),
        (batch._replace(inputs=batch.inputs * 1.0), {}, "batch: inputs are float32 of shape"),
        (batch, {"record": "final"}, "record: 'final' is text; allowed: a list of names of sites, such as ['final']."),
        (
            batch,
            {"edit": {"final": 5}},
            "edit['final']: 5 is not allowed; allowed: an edit of models.edits, or (replace, add, scale)",
        ),
        (batch, {"edit": {"final": ("scale", "a")}}, "edit['final']: ('scale', 'a') is not allowed"),
        (batch, {"edit": {"final": ("zero", 1.0)}}, "edit['final']: unknown kind 'zero'"),
    ]
    for given, how, said in cases:
        with pytest.raises(ConfigError) as error:
            loaded.apply(given, **how)
        assert str(error.value).startswith(said)
    loaded.apply(batch, record=["final"], edit={"final": ("scale", 0)})
    jax.eval_shape(lambda inputs: loaded.apply(batch._replace(inputs=inputs))[0], batch.inputs)


def test_a_batch_may_be_a_constant_of_what_is_compiled(run):
    loaded = load(run)
    batch = loaded.sample(2)
    call = jax.jit(lambda by: loaded.apply(batch, edit={"final": ("scale", by)})[0])
    np.testing.assert_allclose(call(1.0), loaded.apply(batch)[0], atol=1e-5)
