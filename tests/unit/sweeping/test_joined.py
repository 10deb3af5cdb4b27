"""Cells side by side, and what is done where they cannot be."""

import json

import pytest

from positionbias.config.sweeps import Cell
from positionbias.spec import ConfigError
from positionbias.sweeping import joined, ledger
from positionbias.sweeping.executors import LocalExecutor
from positionbias.sweeping.run import run
from positionbias.training import loop, together
from positionbias.training.loop import Outcome
from positionbias.training.run_folder import locked


@pytest.fixture
def cells(tiny):
    rates = [Cell(f"c{i}", tiny({"optimizer.learning_rate": (i + 1) / 100}), {}) for i in range(4)]
    return [Cell("other", tiny({"model.mask": "bidirectional"}), {}), *rates]


@pytest.fixture
def tried(monkeypatch):
    """Folders that were trained together, and alone; how those together end, by outcome or error; programs handed."""
    monkeypatch.setattr(together, "side_by_side", lambda config: True)
    calls, alone, ends, handed = [], [], [], set()

    def train_together(configs, workdirs, command, say, programs):
        handed.add(programs)
        calls.append([path.name for path in workdirs])
        end = ends.pop(0) if ends else Outcome("finished", 12, 0)
        if isinstance(end, BaseException):
            raise end
        return [end] * len(configs)

    def train(config, workdir, command, say, programs):
        handed.add(programs)
        alone.append(workdir.name)
        return Outcome("finished", 12, 0)

    monkeypatch.setattr(together, "train_together", train_together)
    monkeypatch.setattr(loop, "train", train)
    return calls, alone, ends, handed


@pytest.fixture
def begun(tmp_path):
    """A sweep folder whose plan is there."""
    (tmp_path / "plan.json").write_text('{"cells": []}')
    return tmp_path


def ended(folder):
    return [(line["cell"], line["status"]) for line in ledger.lines(folder) if line["status"] != "running"]


def stand(folder, name, step):
    """A cell that was stopped at a step."""
    home = folder / "cells" / name / "checkpoints" / f"{step:06d}"
    home.mkdir(parents=True)
    (home / "mark.json").write_text("{}")


def test_cells_of_one_program_are_side_by_side_and_the_others_alone(cells, tried, tmp_path, capsys):
    assert run(cells, tmp_path, LocalExecutor(), "study") == 0
    assert tried[:2] == ([["c0", "c1", "c2", "c3"]], ["other"])
    assert ended(tmp_path) == [(name, "finished") for name in ("other", "c0", "c1", "c2", "c3")]
    begun = [line["cell"] for line in ledger.lines(tmp_path) if line["status"] == "running"]
    assert begun == ["other", "c0", "c1", "c2", "c3"]
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == [
        "5 cells, 2 programs",
        "  4 cells differ in learning_rate, side by side, up to 64 at once: c0, c1, c2, c3",
        "  1 cell with a program of its own: other",
        "cell 1 of 5: other",
    ]
    assert "side by side: c0, c1, c2, c3" in told


def test_without_memory_they_are_halved_and_at_last_alone(cells, tried, tmp_path, capsys):
    tried[2].extend([MemoryError("no room."), MemoryError("no room."), Outcome("finished", 12, 0)])
    assert run(cells, tmp_path, LocalExecutor(), "study") == 0
    assert tried[:2] == ([["c0", "c1", "c2", "c3"], ["c0", "c1"], ["c2", "c3"]], ["other", "c0", "c1"])
    assert "not all side by side: no room." in capsys.readouterr().out.splitlines()
    assert sorted(ended(tmp_path)) == [(name, "finished") for name in ("c0", "c1", "c2", "c3", "other")]


@pytest.mark.parametrize("error", [ConfigError("workdir: is broken."), ZeroDivisionError()])
def test_whatever_breaks_them_together_is_left_to_each_alone(cells, tried, tmp_path, capsys, error):
    tried[2].append(error)
    assert run(cells, tmp_path, LocalExecutor(), "study") == 0
    assert tried[1] == ["other", "c0", "c1", "c2", "c3"]
    assert f"not side by side: {str(error) or 'ZeroDivisionError'}\n" in capsys.readouterr().out


def test_those_that_stand_at_the_same_step_are_together(cells, tried, begun):
    for name in ("c1", "c3"):
        stand(begun, name, 4)
    stand(begun, "other", 4)
    assert run(cells, begun, LocalExecutor(), "study") == 0
    assert tried[:2] == ([["c0", "c2"], ["c1", "c3"]], ["other"])
    stand(begun, "c0", 8)  # the manifests that runs leave are not there: all are to run
    tried[0].clear()
    assert run(cells, begun, LocalExecutor(), "study") == 0
    assert tried[:2] == ([["c1", "c3"]], ["other", "other", "c0", "c2"])


def test_more_than_may_be_at_once_are_one_batch_after_another(cells, tried, begun, monkeypatch):
    monkeypatch.setattr(joined, "MOST", 3)
    assert run(cells, begun, LocalExecutor(), "study") == 0
    assert tried[:2] == ([["c0", "c1", "c2"]], ["other", "c3"])
    assert len(tried[3]) == 1, "what was compiled is handed from cell to cell"


def test_what_is_held_or_finished_elsewhere_is_not_begun(cells, tried, begun, capsys):
    home = begun / "cells" / "c2"

    class Late(LocalExecutor):
        def run(self, cells, workdir):
            home.mkdir(parents=True)
            # By another process, since the plan.
            (home / "manifest.json").write_text(json.dumps({"status": "finished", "hash": cells[3].hash}))
            yield from super().run(cells, workdir)

    with locked(begun / "cells" / "c1"):
        assert run(cells, begun, Late(), "study", cells) == 4
    assert tried[:2] == ([["c0", "c3"]], ["other"])
    assert sorted(ended(begun)) == [(name, "finished") for name in ("c0", "c2", "c3", "other")]
    assert "cell c1 is left alone: " in capsys.readouterr().out


def test_a_signal_ends_the_sweep(cells, tried, tmp_path):
    tried[2].append(Outcome("stopped", 4, 130, "stopped by SIGINT (Ctrl-C)"))
    assert run(cells[1:], tmp_path, LocalExecutor(), "study") == 130
    assert ended(tmp_path) == [(f"c{i}", "stopped") for i in range(4)]
    tried[2].append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(cells[1:], tmp_path, LocalExecutor(), "study")
    last = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()[-4:]]
    assert [(line["cell"], line["message"]) for line in last] == [(f"c{i}", "interrupted") for i in range(4)]
