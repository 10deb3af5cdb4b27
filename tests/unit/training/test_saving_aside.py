"""Checkpoints are written while training goes on, and are there however the run ends."""

import json
import shutil
import signal
import time

import pytest

from positionbias.files import WriteError
from positionbias.training import checkpoint, loop
from positionbias.training.loop import train
from positionbias.training.writers import MetricsWriter, read_metrics

SECONDS = 60.0  # after which what is waited for will not come


@pytest.fixture
def config(tiny):
    return tiny({"checkpoint.every": 6})


def run(config, workdir):
    return train(config, workdir, ["test"], lambda line: None)


@pytest.fixture
def slow(monkeypatch, tmp_path):
    """The checkpoint of step 6 is written only after the line of step 8 has been logged."""
    write = checkpoint._write_state

    def waiting(home, state):
        end = time.monotonic() + SECONDS
        while home.name == "000006" and not any(x["step"] == 8 for x in read_metrics(tmp_path / "run/metrics.jsonl")):
            if time.monotonic() > end:
                raise WriteError("training did not go on.")
            time.sleep(0.01)
        write(home, state)

    monkeypatch.setattr(checkpoint, "_write_state", waiting)


def whole(folder):
    return [step for step in checkpoint.steps(folder / "checkpoints") if checkpoint.whole(folder / "checkpoints", step)]


def test_training_goes_on_while_a_checkpoint_is_written(config, tmp_path, slow):
    assert run(config, tmp_path / "run").status == "finished"
    assert whole(tmp_path / "run") == [6, 12]


def test_a_checkpoint_is_that_of_the_metrics_before_it_however_late_it_is_written(config, tmp_path, monkeypatch):
    folder, sync = tmp_path / "run", MetricsWriter.sync

    def waiting(writer):
        end = time.monotonic() + SECONDS
        while not any(line["step"] == 8 for line in read_metrics(folder / "metrics.jsonl")):
            assert time.monotonic() < end
            time.sleep(0.01)
        sync(writer)

    monkeypatch.setattr(MetricsWriter, "sync", waiting)
    run(config, folder)
    shutil.rmtree(folder / "checkpoints" / "000012")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    assert run(config, folder).status == "finished"


def test_a_save_in_flight_at_a_signal_is_finished(config, tmp_path, slow, monkeypatch):
    log = loop.Kept.log

    def raising(kept, line):
        if line["step"] == 8:
            assert whole(tmp_path / "run") == []
            signal.raise_signal(signal.SIGTERM)
        log(kept, line)

    monkeypatch.setattr(loop.Kept, "log", raising)
    outcome = run(config, tmp_path / "run")
    assert (outcome.status, outcome.code) == ("stopped", 143)
    assert whole(tmp_path / "run") == [6, outcome.step]


def test_a_save_in_flight_at_an_error_is_finished_and_the_error_told(config, tmp_path, slow, monkeypatch):
    log = loop.Kept.log

    def raising(kept, line):
        log(kept, line)
        if line["step"] == 8:
            raise RuntimeError("not of the save")

    monkeypatch.setattr(loop.Kept, "log", raising)
    with pytest.raises(RuntimeError, match="not of the save"):
        run(config, tmp_path / "run")
    assert whole(tmp_path / "run") == [6]
    assert json.loads((tmp_path / "run/manifest.json").read_text())["message"] == "RuntimeError: not of the save"


def test_a_save_that_failed_is_told_before_the_next_one(config, tmp_path, monkeypatch):
    asked = []

    def failing(home, state):
        asked.append(home.name)
        raise WriteError("cannot write there: No space left on device.")

    monkeypatch.setattr(checkpoint, "_write_state", failing)
    with pytest.raises(WriteError, match="No space left"):
        run(config, tmp_path / "run")
    assert asked == ["000006"]
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "failed"
