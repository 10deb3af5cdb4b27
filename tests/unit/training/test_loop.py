"""The loop's contract: resuming to the bit, refusing, stopping, and what it leaves behind."""

import contextlib
import errno
import json
import os
import shutil
import signal

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from positionbias import hosts
from positionbias.config.build import Experiment, build
from positionbias.errors import GoneError
from positionbias.evaluation.by_position import Evaluator
from positionbias.evaluation.rows import read_rows
from positionbias.files import FileError, WriteError
from positionbias.spec import ConfigError
from positionbias.training import auto, checkpoint, loop, reuse, run_folder, writers
from positionbias.training.loop import train
from positionbias.training.program import Compiled, Program
from positionbias.training.run_folder import FolderInUse
from positionbias.training.writers import read_metrics

pytestmark = pytest.mark.usefixtures("as_users")


def quiet(line):
    return None


def run(config, workdir, stop_after=None, say=quiet):
    return train(config, workdir, ["test"], say, stop_after)


def left(workdir, step=12):
    """Everything a run leaves that must not depend on how it was interrupted."""
    plain, _ = checkpoint.restore(workdir / "checkpoints", step)
    metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(workdir / "metrics.jsonl")]
    rows = {path.name: read_rows(path) for path in sorted((workdir / "evals").iterdir())}
    return plain, metrics, rows, json.loads((workdir / "summary.json").read_text())


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    else:
        assert a == b or (a != a and b != b)


@pytest.fixture(scope="module", autouse=True)
def kept():
    """What runs of one config compile, which later ones take over: tracing it anew is most of the time of a run."""
    made, compiled = {}, Program.compile

    def once(kind, config, make):
        key = kind, repr(config)
        if key not in made:
            made[key] = make()
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "compile", lambda self: once("step", self.experiment.config, lambda: compiled(self)))
        patch.setattr(
            reuse,
            "Evaluator",
            lambda e, *more, **own: once("rows", e.config, lambda: Evaluator(e, *more, **own)),
        )
        yield made


@pytest.fixture
def config(tiny):
    return tiny({"evaluation.every": 6, "checkpoint.every": 6})


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    return tmp_path_factory.mktemp("unbroken") / "run"


@pytest.fixture
def reference(config, unbroken):
    if not unbroken.exists():
        run(config, unbroken)
    return left(unbroken)


def test_a_run_leaves_its_folder_as_documented(config, unbroken, reference):
    assert {p.name for p in unbroken.iterdir()} >= {"config.json", "manifest.json", "metrics.jsonl", "summary.json"}
    manifest = json.loads((unbroken / "manifest.json").read_text())
    assert (manifest["status"], manifest["step"]) == ("finished", 12)
    chosen = {"replica_layout": "loop", "mesh": "2 replica x 1 data x 1 fsdp", "microbatch": 8, "steps_per_dispatch": 2}
    assert manifest["auto"] == chosen | {"attention": "xla_dense"}
    assert checkpoint.steps(unbroken / "checkpoints") == [6, 12]
    assert [line["step"] for line in reference[1]] == [4, 8, 12]
    assert list(reference[2]) == ["000000.npz", "000006.npz", "000012.npz"]
    assert len(reference[3]["accuracy"]["replicas"]) == 2
    assert "at_init" in reference[3]


def test_evaluations_tell_how_far_they_are(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writers, "PLAIN_SECONDS", 0.0)
    said = []
    run(config, tmp_path / "run", say=lambda line: (said.append(line), print(line)))
    told = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    last = told.index("evaluating the models at step 12 of 12")
    items = config.evaluation.items
    total = items + config.evaluation.influence_items
    assert told[last - 1 :] == ["step 12/12", said[-1], f"item {items}/{total}", f"item {total}/{total}"]


@pytest.mark.parametrize("stops", [[2], [6], [10], [2, 4, 8]], ids=str)
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(config, reference, tmp_path, kept, stops):
    for stop in stops:
        outcome = run(config, tmp_path / "run", stop_after=stop)
        assert (outcome.status, outcome.step, outcome.code) == ("stopped", stop, 0)
    kept.clear()  # as another process, which compiles anew
    assert run(config, tmp_path / "run").status == "finished"
    assert_same(left(tmp_path / "run"), reference)


def test_a_finished_run_is_left_alone(config, unbroken, reference):
    before = {p: p.read_bytes() for p in unbroken.rglob("*") if p.is_file() and p.name != ".lock"}
    said = []
    assert run(config, unbroken, say=said.append).status == "finished"
    assert "finished at step 12" in said[0]
    assert {p: p.read_bytes() for p in unbroken.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_truncated_checkpoint_is_skipped_for_the_last_whole_one(config, reference, tmp_path):
    run(config, tmp_path / "run", stop_after=10)
    for path in (tmp_path / "run" / "checkpoints" / "000010" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":  # the arrays themselves
            path.write_bytes(path.read_bytes()[:-40])
    said = []
    run(config, tmp_path / "run", say=said.append)
    assert any("skipped checkpoint 10" in line for line in said)
    assert any("resumed at step 6" in line for line in said)
    assert_same(left(tmp_path / "run"), reference)


def content(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}


def of_another_format(mark):
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "format": 2}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda mark: mark.write_text("{"), r"no checkpoint can be restored, of 6, 10 \(checkpoint 10: its mark .*\)"),
        (of_another_format, "checkpoint 10 has format 2, allowed: 1"),
        (None, "checkpoint 10 does not fit: leaf .* is missing"),
    ],
    ids=["none whole", "format", "fit"],
)
def test_checkpoints_that_cannot_be_used_are_refused_and_nothing_is_cut(config, tmp_path, monkeypatch, damage, reason):
    run(config, tmp_path / "run", stop_after=10)
    if damage is None:
        shape = Program.shape
        monkeypatch.setattr(Program, "shape", lambda self: {**shape(self), "more": jax.ShapeDtypeStruct((), np.int32)})
    else:
        for step in ("000006", "000010"):
            damage(tmp_path / "run" / "checkpoints" / step / "mark.json")
    before = content(tmp_path / "run")
    with pytest.raises(ConfigError, match=rf"^workdir: {reason}; allowed in '.*/checkpoints': what was saved, or no"):
        run(config, tmp_path / "run")
    assert content(tmp_path / "run") == before


def test_a_machine_that_cannot_read_loses_nothing(config, reference, tmp_path, monkeypatch):
    run(config, tmp_path / "run", stop_after=10)
    before = content(tmp_path / "run")

    def lacking(path, *arguments, **more):
        raise OSError(errno.EMFILE, "whatever")

    for module in (np, ocp):
        with monkeypatch.context() as patch:
            patch.setattr(module, "load", lacking)
            with pytest.raises(FileError, match=r"^cannot read '.*': Too many open files\.$"):
                run(config, tmp_path / "run")
        manifest = tmp_path / "run" / "manifest.json"
        assert json.loads(manifest.read_text())["message"].endswith("Too many open files.")
        assert {**content(tmp_path / "run"), manifest: before[manifest]} == before
    run(config, tmp_path / "run")
    assert_same(left(tmp_path / "run"), reference)


def test_a_folder_of_another_config_is_refused_and_left_as_it_was(config, tiny, unbroken, reference):
    before = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*")}
    with pytest.raises(ConfigError, match="seed"):
        run(tiny({"evaluation.every": 6, "checkpoint.every": 6, "seed": 1}), unbroken)
    assert {p: p.stat().st_mtime_ns for p in unbroken.rglob("*")} == before


def test_a_refused_config_writes_nothing(tiny, tmp_path):
    with pytest.raises(ConfigError):
        run(tiny({"model.position": "learned(length=2)"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(config, tmp_path, monkeypatch):
    inner = []

    def again(*args, **kwargs):
        with pytest.raises(FolderInUse):
            run(config, tmp_path / "run")
        inner.append(True)
        raise RuntimeError("enough")

    monkeypatch.setattr(loop.Run, "go", again)
    with pytest.raises(RuntimeError, match="enough"):
        run(config, tmp_path / "run")
    assert inner == [True]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["message"]) == ("failed", "RuntimeError: enough")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_with_a_checkpoint(config, reference, tmp_path, monkeypatch, number, code):
    take = loop.Run._take

    def raising(self, metrics, ended, stop):
        if ended == 4:
            signal.raise_signal(number)
        return take(self, metrics, ended, stop)

    monkeypatch.setattr(loop.Run, "_take", raising)
    outcome = run(config, tmp_path / "run")
    monkeypatch.undo()
    assert (outcome.status, outcome.code) == ("stopped", code)
    assert outcome.step in checkpoint.steps(tmp_path / "run" / "checkpoints")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "stopped"
    run(config, tmp_path / "run")
    assert_same(left(tmp_path / "run"), reference)


def test_numbers_that_are_not_finite_stop_the_run_and_are_not_saved(tiny, tmp_path):
    config = tiny({"optimizer.name": "sgd", "train.vary": {"learning_rate": [0.01, 1e30]}, "checkpoint.every": 4})
    outcome = run(config, tmp_path / "run")
    assert (outcome.status, outcome.code) == ("failed", 3)
    assert "replica 1 is not finite at step" in outcome.message
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["message"]) == ("failed", outcome.message)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []


def test_a_disk_without_room_ends_the_run_with_a_sentence_and_the_same_command_goes_on(
    config, reference, tmp_path, monkeypatch
):
    save = checkpoint._write_state

    def filling(home, state):
        save(home, state)
        if home.name == "000012":
            raise WriteError(f"cannot write '{home}': No space left on device.")

    monkeypatch.setattr(checkpoint, "_write_state", filling)
    with pytest.raises(WriteError, match=r"^cannot write '.*/000012': No space left on device\.$"):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["message"].endswith("No space left on device.")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["000006"]
    run(config, tmp_path / "run")
    assert_same(left(tmp_path / "run"), reference)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore", MemoryError),
        ("INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes.", MemoryError),
        ("INTERNAL: something else", jax.errors.JaxRuntimeError),
    ],
)
def test_memory_that_runs_out_is_told_in_one_sentence(config, tmp_path, monkeypatch, said, kind):
    def advance(self, state, start):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(Compiled, "advance", advance)
    with pytest.raises(kind) as caught:
        run(config, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    if kind is MemoryError:
        assert str(caught.value).startswith("memory ran out, a smaller model or train.microbatch needs less: ")
        assert str(caught.value).endswith(" 9 bytes.")
        assert manifest["message"] == str(caught.value)


def test_the_step_is_compiled_once(config, tmp_path, monkeypatch, kept):
    kept.clear()
    traces = []
    advance = Program.advance
    monkeypatch.setattr(Program, "advance", lambda self, *args: traces.append(1) or advance(self, *args))
    run(config, tmp_path / "run")
    assert len(traces) == 1


@pytest.fixture
def clean(monkeypatch):
    """A checkout without changes."""
    monkeypatch.setattr(run_folder._Source, "found", lambda self, wait: {"commit": "0123", "dirty": False})


def test_changed_circumstances_are_told(config, tmp_path, clean):
    run(config, tmp_path / "run", stop_after=6)
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.runtime, "cores", lambda: 77)
        patch.setattr(run_folder._Source, "found", lambda self, wait: {"commit": "abc", "dirty": True})
        run(config, tmp_path / "run", stop_after=8, say=said.append)
    path = tmp_path / "run" / "manifest.json"
    (told,) = [line for line in said if "bits are not guaranteed" in line]
    assert told.startswith("bits are not guaranteed after step 6: commit changed from 0123 to abc, ")
    assert told.endswith("the code has changes that are not committed, threads changed")
    assert json.loads(path.read_text())["bits_guaranteed"] is False
    # what was not guaranteed once is not guaranteed in what follows from it, though nothing changed since
    said.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.runtime, "cores", lambda: 77)
        patch.setattr(run_folder._Source, "found", lambda self, wait: {"commit": "abc", "dirty": False})
        remark(tmp_path / "run", 8, dirty=False)
        run(config, tmp_path / "run", stop_after=10, say=said.append)
    assert not any("bits" in line for line in said)
    assert json.loads(path.read_text())["bits_guaranteed"] is False
    # a start from scratch is a run like any other
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    run(config, tmp_path / "run", stop_after=6, say=said.append)
    assert not any("bits" in line for line in said)
    assert json.loads(path.read_text())["bits_guaranteed"] is True


def remark(workdir, step, **circumstances):
    """Change the circumstances that a checkpoint says it was made in."""
    plain, meta = checkpoint.restore(workdir / "checkpoints", step)
    shutil.rmtree(workdir / "checkpoints" / f"{step:06d}")
    meta["circumstances"] |= circumstances
    checkpoint.save(workdir / "checkpoints", step, plain, meta)


def test_a_run_killed_while_it_compiles_raises_no_false_alarm(config, tmp_path, clean, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Program, "compile", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    said = []
    run(config, tmp_path / "run", stop_after=2, say=said.append)
    run(config, tmp_path / "run", stop_after=4, say=said.append)
    assert any("resumed at step 2" in line for line in said)
    assert not any("bits" in line for line in said)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["bits_guaranteed"] is True


def test_what_came_after_the_restored_step_is_cut(config, reference, tmp_path):
    run(config, tmp_path / "run", stop_after=6)
    before = (tmp_path / "run" / "summary.json").read_bytes()
    run(config, tmp_path / "run")
    for name in ("more.npz", "step000012.npz"):  # results of `evaluate` are no part of training
        shutil.copy(tmp_path / "run" / "evals" / "000012.npz", tmp_path / "run" / "evals" / name)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000012")
    unfinish(tmp_path / "run")
    with stopping_at_once():
        run(config, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "evals").iterdir()) == [
        "000000.npz",
        "000006.npz",
        "more.npz",
        "step000012.npz",
    ]
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with stopping_at_once():
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not list((tmp_path / "run" / "evals").glob("0*.npz"))


def test_metrics_that_changed_are_refused_and_those_that_are_gone_are_told(config, tmp_path):
    run(config, tmp_path / "run", stop_after=10)
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole.replace('"loss": [1', '"loss": [2', 1))
    with pytest.raises(ConfigError, match="does not hold what was written up to step 10"):
        run(config, tmp_path / "run")
    metrics.unlink()
    (tmp_path / "run" / "evals" / "000006.npz").unlink()
    said = []
    with stopping_at_once():
        run(config, tmp_path / "run", say=said.append)
    assert "the metrics up to step 10 are gone" in said
    assert "the evaluations of steps 6 are gone" in said
    run(config, tmp_path / "run")
    assert [line["step"] for line in read_metrics(metrics)] == [12]


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])  # as a step runs, or as it is handed over
def test_a_process_that_is_gone_is_told_in_one_sentence(kind, config, tmp_path, monkeypatch):
    def advance(self, state, start):
        monkeypatch.setattr(hosts, "several", lambda: True)
        raise kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer.\nmore")

    monkeypatch.setattr(Compiled, "advance", advance)
    told = r"^another process of this run has ended \(UNKNOWN: Gloo AllGather failed: Connection closed by peer\); the "
    with pytest.raises(GoneError, match=told) as caught:
        run(config, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["message"]) == ("failed", str(caught.value))


@pytest.mark.parametrize("during", ["_take", "_evaluate"])
def test_a_signal_lets_no_further_dispatch_begin(config, reference, tmp_path, monkeypatch, during):
    original, at = getattr(loop.Run, during), []

    def late(self, *arguments):
        if not at:
            at.append(self.step)
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(loop.Run, during, late)
    outcome = run(config, tmp_path / "run")
    assert (outcome.status, [outcome.step], outcome.code) == ("stopped", at, 130)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == at
    assert (tmp_path / "run" / "evals" / "000000.npz").exists() == (during == "_evaluate")
    run(config, tmp_path / "run")
    assert_same(left(tmp_path / "run"), reference)


def unfinish(workdir):
    path = workdir / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))


@contextlib.contextmanager
def stopping_at_once():
    """A signal arrives while the run compiles."""
    compile_, signalled = loop.Program.compile, []

    def late(self):
        signalled.append(signal.raise_signal(signal.SIGTERM))
        return compile_(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Program, "compile", late)
        yield
    assert signalled


def test_a_signal_before_the_first_step_evaluates_nothing(config, reference, tmp_path):
    with stopping_at_once():
        outcome = run(config, tmp_path / "run")
    assert (outcome.status, outcome.step, outcome.code) == ("stopped", 0, 143)
    assert not (tmp_path / "run" / "evals").exists()
    run(config, tmp_path / "run")
    assert_same(left(tmp_path / "run"), reference)


def test_a_signal_during_the_last_evaluation_is_in_the_exit_code(config, tmp_path, monkeypatch):
    evaluate = loop.Run._evaluate

    def late(self, state, step):
        if step == 12:
            signal.raise_signal(signal.SIGINT)
        evaluate(self, state, step)

    monkeypatch.setattr(loop.Run, "_evaluate", late)
    outcome = run(config, tmp_path / "run")
    assert (outcome.status, outcome.step, outcome.code) == ("finished", 12, 130)
    assert outcome.message == "finished before SIGINT (Ctrl-C) could stop it"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["of"] == 12


def test_a_second_ctrl_c_leaves_a_stopped_run(config, tmp_path, monkeypatch):
    def twice(self, state, step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop.Run, "_evaluate", twice)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "stopped"


def test_a_checkpoint_is_read_once_on_starting_and_never_on_saving(config, tmp_path, monkeypatch):
    run(config, tmp_path / "run", stop_after=2)
    read, steps_read = checkpoint._read_state, []
    monkeypatch.setattr(
        checkpoint, "_read_state", lambda home, step, told: steps_read.append(step) or read(home, step, told)
    )
    run(config, tmp_path / "run")
    assert steps_read == [2]


def test_metrics_are_on_the_disk_before_the_checkpoint_after_them(config, tmp_path, monkeypatch):
    synced, save, fsync = [], checkpoint.save, os.fsync

    def noting(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(folder, step, *arguments):
        assert os.stat(tmp_path / "run" / "metrics.jsonl").st_ino in synced
        synced.clear()
        save(folder, step, *arguments)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(checkpoint, "save", checked)
    run(config, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [6, 12]


def test_what_an_operator_does_not_see_is_said(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "narrowed", ["layer 0 sees less"])
    said = []
    run(config, tmp_path / "run", stop_after=2, say=said.append)
    assert "layer 0 sees less" in said


def test_a_damaged_evaluation_at_initialisation_is_made_again(config, reference, tmp_path):
    run(config, tmp_path / "run", stop_after=10)
    damage_rows(tmp_path / "run", 0)
    said = []
    assert run(config, tmp_path / "run", say=said.append).status == "finished"
    assert any("skipped evals" in line for line in said)
    assert_same(left(tmp_path / "run"), reference)


def test_a_damaged_evaluation_of_a_step_gone_by_is_left_out(config, reference, tmp_path):
    run(config, tmp_path / "run", stop_after=10)
    damage_rows(tmp_path / "run", 6)
    said = []
    assert run(config, tmp_path / "run", say=said.append).status == "finished"
    assert any("skipped evals" in line for line in said)
    plain, metrics, rows, summary = reference
    rest = {name: found for name, found in rows.items() if name != "000006.npz"}
    assert_same(left(tmp_path / "run"), (plain, metrics, rest, summary))


@pytest.mark.parametrize("damaged", [[0], [12], [0, 12]], ids=str)
def test_a_run_killed_before_it_said_finished_ends_with_the_last_summary(config, reference, tmp_path, damaged):
    run(config, tmp_path / "run")
    unfinish(tmp_path / "run")
    for step in damaged:
        damage_rows(tmp_path / "run", step)
    assert run(config, tmp_path / "run").status == "finished"
    assert_same(left(tmp_path / "run"), reference)


def damage_rows(workdir, step):
    path = workdir / "evals" / f"{step:06d}.npz"
    path.write_bytes(path.read_bytes()[:-40])


def test_a_run_of_no_steps_keeps_and_measures_the_models_as_they_are_drawn(config, reference, tiny, tmp_path, kept):
    fresh, folder = tiny({"train.steps": 0}), tmp_path / "run"
    assert run(fresh, folder) == loop.Outcome("finished", 0, 0)
    plain, metrics, rows, summary = left(folder, 0)
    assert (metrics, list(rows)) == ([], ["000000.npz"])
    assert_same(rows["000000.npz"], reference[2]["000000.npz"])
    assert (summary["steps"], summary["of"]) == (0, 0)
    assert summary["influence"] == summary["at_init"]["influence"] == reference[3]["at_init"]["influence"]
    kept.clear()
    drawn = Program(build(fresh), auto.resolve(build(fresh), "cpu", 2)).compile()
    assert_same(plain, checkpoint.to_plain(jax.device_get(drawn.unpack(drawn.fresh()))))
    said = []
    assert run(fresh, folder, say=said.append).status == "finished"
    assert said == [f"{folder} holds this run, finished at step 0"]


def test_a_run_of_no_steps_that_was_killed_is_gone_on_with(tiny, tmp_path):
    run(tiny({"train.steps": 0}), tmp_path / "run")
    before = left(tmp_path / "run", 0)
    unfinish(tmp_path / "run")
    damage_rows(tmp_path / "run", 0)
    assert run(tiny({"train.steps": 0}), tmp_path / "run").status == "finished"
    assert_same(left(tmp_path / "run", 0), before)
