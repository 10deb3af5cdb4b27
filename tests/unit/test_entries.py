"""What the command lines of the entries refuse before anything is read."""

import pytest

from positionbias import evaluate, match, report, sweep, train
from positionbias.spec import ConfigError


def test_an_empty_workdir_is_refused_by_every_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text("def get_config(): return {}")
    for entry in (train, sweep):
        with pytest.raises(ConfigError, match=r"^--workdir: '' is not allowed; allowed: the path of a folder\.$"):
            entry.main(["--config", "c.py", "--workdir", ""])
    for entry in (evaluate, report):
        with pytest.raises(ConfigError, match=r"^--workdir: '' is not allowed; allowed: the path of a folder\.$"):
            entry.main(["--workdir="])


@pytest.mark.parametrize("label", ["8", "000008", "000008.npz", "8.a", "more.npz", "more.json"])
def test_a_label_that_could_be_taken_for_a_file_of_training_is_refused(tmp_path, label):
    with pytest.raises(ConfigError, match=f"^--label: '{label}' is not allowed, "):
        evaluate.main(["--workdir", str(tmp_path), "--label", label])


def test_a_match_without_a_reference_is_refused():
    with pytest.raises(ConfigError, match=r"^command line: --reference is missing; write python -m positionbias.match"):
        match.main(["--config", "c.py"])
