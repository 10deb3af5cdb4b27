"""What the command lines of the entries refuse before anything is read, and where folders lie by default."""

import os
import pathlib

import pytest

from positionbias import analyze, evaluate, match, report, sweep, train
from positionbias.config import sweeps
from positionbias.spec import ConfigError
from positionbias.sweeping import plan
from positionbias.tasks import export


@pytest.mark.parametrize("given", ["", "gs://bucket/run"])
def test_a_workdir_that_is_no_path_is_refused_by_every_entry(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text("def get_config(): return {}")
    told = f"^--workdir: '{given}' is (not allowed|an address); allowed: the path of a folder\\."
    for entry in (train, sweep):
        with pytest.raises(ConfigError, match=told):
            entry.main(["--config", "c.py", "--workdir", given])
    for entry, more in ((evaluate, []), (report, []), (analyze, ["--analyses", "rollout"])):
        with pytest.raises(ConfigError, match=told):
            entry.main([f"--workdir={given}", *more])
    for entry, more in ((evaluate, ["--workdir=."]), (export, ["--task", "inverse_permutation"])):
        with pytest.raises(ConfigError, match=told.replace("workdir", "data_dir")):
            entry.main([*more, f"--data_dir={given}"])
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []


def test_a_workdir_with_too_long_a_name_is_refused_by_every_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pathlib.Path, "is_dir", os.path.isdir)  # as of Python 3.14, which raises nothing
    (tmp_path / "c.py").write_text("def get_config(): return {}")
    told = r"^--workdir: 'a+\.\.\.' cannot be looked up \(File name too long\); allowed: the path of a folder\.$"
    for entry, more in ((train, ["--config", "c.py"]), (sweep, ["--config", "c.py"]), (evaluate, []), (report, [])):
        with pytest.raises(ConfigError, match=told):
            entry.main([*more, "--workdir", 300 * "a"])
    with pytest.raises(ConfigError, match=told.replace("workdir", "data_dir")):
        export.main(["--task", "inverse_permutation", "--data_dir", 300 * "a"])


@pytest.mark.parametrize("label", ["8", "000008", "000008.npz", "8.a", "more.npz", "more.json"])
def test_a_label_that_could_be_taken_for_a_file_of_training_is_refused(tmp_path, label):
    with pytest.raises(ConfigError, match=f"^--label: '{label}' is not allowed, "):
        evaluate.main(["--workdir", str(tmp_path), "--label", label])


def test_a_match_without_a_reference_is_refused():
    with pytest.raises(ConfigError, match=r"^command line: --reference is missing; write python -m positionbias.match"):
        match.main(["--config", "c.py"])


def test_a_sweep_lies_under_the_name_in_its_config_and_goes_on_where_it_was_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "operators.py").write_text(
        "def get_config():\n    return {'name': 'recall_operators', 'task': 'inverse_permutation(n=4)'}\n"
        "def sweep(add):\n    add({'seed': 1}, name='a')\n"
    )

    def asked(*more):
        assert sweep.main(["--config", "operators.py", "--status", *more]) == 0
        return capsys.readouterr().out

    home = pathlib.Path(asked().split("'")[1])
    assert home.parent == tmp_path / "sweeps" / "recall_operators"
    assert len(home.name) == 12
    assert f"{tmp_path}/sweeps/other/" in asked("--config.name=other")
    former = tmp_path / "sweeps" / "operators" / home.name
    former.mkdir(parents=True)
    assert f"{str(home)!r} does not exist" in asked()  # nothing was begun there
    plan.keep(former, plan.planned(sweeps.cells("operators.py"), "operators"))
    assert asked() == "1 cell: 1 waiting\na  waiting\n"
    home.mkdir(parents=True)
    assert f"{str(home)!r} holds no plan" in asked()
