"""Files from someone else can at worst be refused: nothing in them runs, and nothing here listens for anybody."""

import contextlib
import json
import pathlib
import pickle
import shutil
import socket
import sys

import numpy as np
import pytest
from sockets import listening

import positionbias
from positionbias import evaluate, sweep, train
from positionbias.evaluation.rows import read_rows
from positionbias.spec import ConfigError
from positionbias.tasks import export, exported
from positionbias.training import checkpoint

CONFIG = """
def get_config():
    return {
        "name": "tiny", "task": "inverse_permutation(n=4, alphabet=4)",
        "model": {"layers": 1, "width": 16, "heads": 2},
        "train": {"steps": 8, "batch_size": 8, "replicas": 2, "log_every": 4},
        "evaluation": {"items": 16, "influence_items": 8}, "checkpoint": {"every": 4},
    }


def sweep(add):
    add({}, name="one")
"""


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(path)))
    path.unlink()  # so it would be there
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that is finished, made by an entry, and its config file beside it."""
    home = tmp_path_factory.mktemp("hostile")
    (home / "config.py").write_text(CONFIG)
    assert train.main(["--config", str(home / "config.py"), "--workdir", str(home / "run")]) == 0
    return home


@pytest.fixture
def run(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copy(folder / "config.py", tmp_path)
    return tmp_path / "run"


def test_rows_are_never_unpickled(run, marker, capsys):
    path = run / "evals" / "000008.npz"
    whole = dict(np.load(path))
    for name in whole:
        np.savez(path, **{**whole, name: np.array([Runs(marker)], object)})
        with pytest.raises(ConfigError, match="does not hold the rows of an evaluation"):
            read_rows(path)
    path.write_bytes(pickle.dumps(Runs(marker)))
    with pytest.raises(ConfigError, match="does not hold the rows of an evaluation"):
        read_rows(path)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    assert train.main(["--config", str(run.parent / "config.py"), "--workdir", str(run)]) == 0
    assert "skipped evals: " in capsys.readouterr().out
    assert read_rows(path)["conditions"] == ["train"]


def test_checkpoints_are_never_unpickled(run, marker):
    home = run / "checkpoints" / "000008"
    harm = pickle.dumps(Runs(marker))
    for path in [p for p in home.rglob("*") if p.is_file()]:
        (home / "state" / "more.pkl").write_bytes(harm)
        whole = path.read_bytes()
        path.write_bytes(harm)
        with contextlib.suppress(checkpoint.CheckpointError):  # of some files nothing is read
            checkpoint.restore(run / "checkpoints", 8)
        path.write_bytes(whole)
    (home / "mark.json").write_bytes(harm)
    with pytest.raises(ConfigError, match="checkpoint 8"):
        positionbias.load(str(run), step=8)


def test_a_data_set_names_no_module_to_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text("open('ran', 'w')\nclass Feature:\n    pass\n")
    assert export.main(["--task", "inverse_permutation(n=3)", "--data_dir", "data", "--examples", "5"]) == 0
    home = tmp_path / "data" / "inverse_permutation" / exported.VERSION
    assert len(exported.read(home).batch.inputs) == 5
    features = (home / "features.json").read_text()
    (home / "features.json").write_text(
        features.replace("tensorflow_datasets.core.features.tensor_feature.Tensor", "stranger.Feature", 1)
    )
    with pytest.raises(ConfigError, match=r"its items are of the class 'stranger\.Feature'"):
        exported.read(home)
    assert not (tmp_path / "ran").exists()
    assert "stranger" not in sys.modules
    for text in ("{", "[" * 100_000, '{"pythonClassName": 3}'):
        (home / "features.json").write_text(text)
        with pytest.raises(ConfigError, match="is not an exported evaluation set"):
            exported.read(home)


@pytest.mark.skipif(not pathlib.Path("/proc/self/net/tcp").exists(), reason="only Linux tells where a process listens")
def test_nothing_listens(folder, tmp_path, monkeypatch):
    def refused(*_):
        raise AssertionError("a socket listens")

    with socket.create_server(("127.0.0.1", 0)):
        assert listening() == {"0100007F"}
    before = listening()
    for name in ("bind", "listen"):
        monkeypatch.setattr(socket.socket, name, refused)
    config = ["--config", str(folder / "config.py")]
    assert train.main([*config, "--workdir", str(tmp_path / "run")]) == 0
    assert sweep.main([*config, "--workdir", str(tmp_path / "sweep")]) == 0
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--items", "8"]) == 0
    assert listening() == before
