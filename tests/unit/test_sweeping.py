"""The life of a sweep: what is refused before it starts, and what ends it early."""

import json
import signal

import pytest

from positionbias import runtime, sweeping
from positionbias.config.sweeps import Cell
from positionbias.spec import ConfigError
from positionbias.training import loop


@pytest.fixture
def cells(tiny):
    """Three cells of which the second, `wide`, has most devices."""
    small = {"train.steps": 4, "train.replicas": 1}
    return [
        Cell("one", tiny({**small, "seed": 1}), {}),
        Cell("wide", tiny({**small, "train.replicas": 2, "train.devices": 2}), {}),
        Cell("last", tiny({**small, "seed": 2}), {}),
    ]


class Recorder:
    """An executor that runs nothing."""

    def __init__(self):
        self.cells = []

    def run(self, cells, workdir):
        self.cells += [cell.name for cell in cells]
        return iter(())


def test_a_cell_that_cannot_be_built_refuses_the_sweep(cells, tiny, tmp_path):
    bad = Cell("bad", tiny({"model.position": "learned(length=2)"}), {})
    recorder = Recorder()
    with pytest.raises(ConfigError, match=r"^cell bad: model\.position: "):
        sweeping.run([*cells, bad], tmp_path / "sweep", recorder, "study")
    assert recorder.cells == []
    assert list(tmp_path.iterdir()) == []


def test_devices_are_those_of_all_cells_also_when_only_some_are_left(cells, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runtime, "configure", asked.append)
    done = tmp_path / "cells" / "wide"
    done.mkdir(parents=True)
    (done / "manifest.json").write_text('{"status": "finished"}')
    (tmp_path / "plan.json").write_text('{"cells": []}')
    recorder = Recorder()
    sweeping.run(cells, tmp_path, recorder, "study")
    assert (recorder.cells, asked) == (["one", "last"], [2])


def test_a_signal_in_the_last_evaluation_of_a_cell_ends_the_sweep(cells, tmp_path, monkeypatch):
    evaluate = loop._Run._evaluate

    def late(self, state, step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        evaluate(self, state, step)

    monkeypatch.setattr(loop._Run, "_evaluate", late)
    assert sweeping.run(cells, tmp_path, sweeping.LocalExecutor(), "study") == 130
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(line["cell"], line["status"], line["code"]) for line in ledger] == [("one", "finished", 130)]
