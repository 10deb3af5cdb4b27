"""Broken configs through the entry itself: refused in one sentence, exit code 2, nothing written."""

import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "unit" / "config"))
from broken import Broken, cases, put, write

from positionbias import launch, train
from positionbias.spec import ConfigError

TOGETHER = {
    "mask x length": ({"model.position": "learned(length=7)"}, "learned.length = 7"),
    "embedding scheme in a later layer": ({"model.position": "[rope, learned]"}, "layer 1"),
    "rope x head size": ({"model.position": "rope", "model.width": 12, "model.heads": 4}, "even head size"),
    "sinusoidal x width": ({"model.position": "sinusoidal", "model.width": 9, "model.heads": 1}, "even model.width"),
    "inputs x task": ({"model.inputs": "vector"}, "model.inputs"),
    "one-hot x width": ({"model.inputs": "one_hot"}, "model.width"),
    "readout x width": ({"model.readout": "none"}, "model.readout"),
    "tied x stream": ({"model.readout": "tied", "model.residual": "concatenate"}, "model.readout"),
    "identity OV x residual": ({"model.ov": "identity"}, "model.residual"),
    "identity x shape": ({"model.init.query": "identity", "model.head_size": 7}, "model.init.query"),
    "objective x task": ({"objective": "squared_error"}, "objective"),
    "encoder deeper than decoder": ({"model.architecture": "encoder_decoder(encoder_layers=9)"}, "encoder_layers"),
    "nothing to train": (
        {
            "model.frozen": [
                "embedding",
                "position",
                "query",
                "key",
                "value",
                "output",
                "mlp_in",
                "mlp_out",
                "readout",
            ],
            "model.norm": "none",
        },
        "model.frozen",
    ),
    "devices x replicas": ({"train.mesh.replica": 2, "train.replicas": 3}, "train.mesh.replica"),
}
CASES = [*cases(), *(Broken(put(fields), (), blamed) for fields, blamed in TOGETHER.values())]


@pytest.fixture(autouse=True)
def never_train(monkeypatch):
    def reached(*args, **kwargs):
        raise AssertionError("training began")

    from positionbias.training import loop

    monkeypatch.setattr(loop.Run, "go", reached)
    monkeypatch.setattr(launch, "set_up", lambda *_: None)  # devices are set up for the whole test session


def test_two_hundred_broken_configs_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(CASES) >= 200
    for case in CASES:
        arguments = write(case, tmp_path)
        with pytest.raises(ConfigError) as caught:
            train.main(arguments)
        message = str(caught.value)
        assert case.blamed in message, (case, message)
        assert "\n" not in message
        assert message.endswith((".", "?"))
        left = {path.name for path in tmp_path.iterdir()} - {"broken_config.py", "__pycache__"}
        assert left == set(), (case, left)


def test_the_entry_prints_one_line_and_exits_with_two(tmp_path):
    case = Broken(put({"model.maks": "causal"}), (), "mask")
    command = [sys.executable, "-m", "positionbias.train", *write(case, tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: model.maks: unknown field 'maks', did you mean 'mask'?")
    assert done.stderr.count("\n") == 1
