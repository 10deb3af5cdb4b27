"""Parts of a sweep in several processes: one plan, cells that others hold or have finished, one ledger, one report."""

import contextlib
import fcntl
import json
import os
import shutil
import threading

import pytest

from positionbias.config.resolve import config_hash
from positionbias.config.sweeps import Cell
from positionbias.files import FileError, write_json
from positionbias.reporting import report
from positionbias.spec import ConfigError
from positionbias.sweeping import ledger
from positionbias.sweeping.executors import LocalExecutor
from positionbias.sweeping.run import run
from positionbias.training import loop
from positionbias.training.run_folder import locked


@pytest.fixture
def cells(tiny):
    return [Cell(name, tiny({"train.steps": 4, "seed": seed}), {}) for seed, name in enumerate("abcd")]


class Trained:
    """Stands for `loop.train`: keeps what it was asked for, and leaves a manifest; `then` comes before its n-th run."""

    def __init__(self, then=None):
        self.names, self._then = [], then or {}

    def __call__(self, config, workdir, command, say, programs):
        self._then.get(len(self.names), lambda: None)()
        with locked(workdir):
            self.names.append(workdir.name)
            finish(workdir, config_hash(config))
        return loop.Outcome("finished", 4, 0)


class Unbuilt(LocalExecutor):
    """Runs cells without building them first."""

    def prepare(self, cells, own):
        pass


def finish(folder, digest):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "manifest.json", {"status": "finished", "step": 4, "hash": digest})


@pytest.fixture
def begun(tmp_path):
    """A sweep folder whose plan is there."""
    (tmp_path / "plan.json").write_text('{"cells": []}')
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    def use(then=None):
        made = Trained(then)
        monkeypatch.setattr(loop, "train", made)
        return made

    return use


def ends(folder):
    return [(line["cell"], line["status"]) for line in ledger.lines(folder) if line["status"] != "running"]


def test_parts_run_side_by_side_and_one_plan_holds_all_cells(cells, trained, tmp_path):
    train, prepared = trained(), []

    class Nested(LocalExecutor):
        def prepare(self, everything, own):
            prepared.append((len(everything), len(own)))
            super().prepare(everything, own)

        def run(self, own, workdir):
            written = os.stat(tmp_path / "plan.json").st_ino
            assert run(cells, tmp_path, Unbuilt(), "study", cells[1::2]) == 0
            assert os.stat(tmp_path / "plan.json").st_ino == written
            yield from super().run(own, workdir)

    assert run(cells, tmp_path, Nested(), "study", cells[0::2]) == 0
    assert prepared == [(4, 2)]
    assert train.names == ["b", "d", "a", "c"]
    assert [cell["name"] for cell in json.loads((tmp_path / "plan.json").read_text())["cells"]] == ["a", "b", "c", "d"]
    assert ends(tmp_path) == [(name, "finished") for name in "bdac"]


def test_a_whole_sweep_and_a_part_refuse_each_other(cells, trained, tmp_path, capsys):
    train = trained()
    with locked(tmp_path, part=True):
        assert run(cells, tmp_path, Unbuilt(), "study") == 4
        assert (
            f"error: workdir: '{tmp_path}' is in use by several processes, of which the last to begin was process "
            in capsys.readouterr().err
        )
        assert run(cells, tmp_path, Unbuilt(), "study", cells[:1]) == 0
    with locked(tmp_path):
        assert run(cells, tmp_path, Unbuilt(), "study", cells[1:2]) == 4
    assert f"error: workdir: '{tmp_path}' is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert train.names == ["a"]


def test_a_part_of_another_sweep_is_refused_and_one_of_more_cells_adds_them(cells, tiny, trained, tmp_path):
    trained()
    run(cells[:2], tmp_path, Unbuilt(), "study", cells[:1])
    other = [Cell("a", tiny({"seed": 9}), {}), cells[1]]
    with pytest.raises(ConfigError, match="belongs to another sweep, cell 'a' has another config"):
        run(other, tmp_path, Unbuilt(), "study", other[1:])
    run(cells, tmp_path, Unbuilt(), "study", cells[3:])
    assert len(json.loads((tmp_path / "plan.json").read_text())["cells"]) == 4


def test_a_held_cell_is_left_for_last_and_then_told_as_no_failure(cells, trained, begun, capsys):
    train = trained()
    with locked(begun / "cells" / "b"):
        assert run(cells, begun, Unbuilt(), "study", cells[:3]) == 4
    told = capsys.readouterr()
    assert f"cell b is left for last: workdir: '{begun}/cells/b' is in use by process {os.getpid()} on " in told.out
    assert told.out.index("cell c finished") < told.out.index("cell b is left alone: workdir: ")
    assert told.err.startswith(f"1 of 3 cells were left to other processes:\n  b: workdir: '{begun}/cells/b' is in")
    assert train.names == ["a", "c"]
    assert [line["cell"] for line in ledger.lines(begun)] == ["a", "a", "c", "c"]


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_cell_that_was_held_is_run_if_it_is_not_finished_when_all_others_are(
    cells, trained, begun, capsys, ends_well
):
    holder = contextlib.ExitStack()
    holder.enter_context(locked(begun / "cells" / "a"))

    def let_go():
        if ends_well:
            finish(begun / "cells" / "a", cells[0].hash)
        holder.close()

    train = trained({1: let_go})
    assert run(cells[:3], begun, Unbuilt(), "study") == 0
    assert train.names == ["b", "c"] + ([] if ends_well else ["a"])
    told = "cell a finished by another process" if ends_well else "cell a finished after "
    assert told in capsys.readouterr().out
    assert ends(begun) == [("b", "finished"), ("c", "finished"), ("a", "finished")]


def test_a_cell_that_another_process_finished_meanwhile_is_not_run_again(cells, trained, tmp_path, capsys):
    train = trained({0: lambda: finish(tmp_path / "cells" / "b", cells[1].hash)})
    assert run(cells, tmp_path, Unbuilt(), "study", cells[:2]) == 0
    assert train.names == ["a"]
    assert "cell b finished by another process\n" in capsys.readouterr().out


def test_a_file_where_a_cells_folder_should_be_fails_that_cell_alone(cells, trained, begun):
    train = trained()
    (begun / "cells").mkdir()
    (begun / "cells" / "a").touch()
    assert run(cells[:2], begun, Unbuilt(), "study") == 2
    assert (train.names, ends(begun)) == (["b"], [("a", "failed"), ("b", "finished")])


def test_a_sweep_whose_folder_is_deleted_while_it_runs_ends(cells, trained, tmp_path):
    """The same command would refuse what it went on to write."""
    home = tmp_path / "sweep"
    train = trained({1: lambda: shutil.rmtree(home)})
    with pytest.raises(FileError, match=rf"^cannot read '{home}/plan\.json': it was deleted while cells ran\.$"):
        run(cells, home, Unbuilt(), "study")
    assert train.names == ["a", "b"]


def test_a_cell_that_is_interrupted_is_noted_as_stopped(cells, trained, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    trained({0: interrupt})
    with pytest.raises(KeyboardInterrupt):
        run(cells, tmp_path, Unbuilt(), "study")
    assert ends(tmp_path) == [("a", "stopped")]


def test_of_many_who_finish_a_cell_the_first_says_so(tmp_path):
    together = threading.Barrier(8)

    def finish_it(place):
        for cell in range(5):
            together.wait()
            ledger.note(tmp_path, {"cell": cell, "status": "finished", "where": place})
            ledger.note(tmp_path, {"cell": f"of {place}", "status": "failed"})

    threads = [threading.Thread(target=finish_it, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["cell"] for line in found if line["status"] == "finished") == list(range(5))
    assert len(found) == 5 + 40


def test_a_sweeps_report_is_read_and_written_by_one_at_a_time_and_a_part_draws_its_own(
    cells, trained, begun, monkeypatch
):
    drawn = []

    def page(found):
        if not hasattr(found, "name"):
            with open(begun / ".report.html.lock") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        drawn.append(getattr(found, "name", "sweep"))
        return ""

    trained()
    (begun / "cells").mkdir()
    for name in "abcd":
        (begun / "cells" / name).mkdir()
        write_json(begun / "cells" / name / "config.json", {"config": {}})
    monkeypatch.setattr(report, "run_page", page)
    monkeypatch.setattr(report, "sweep_page", page)
    for part in (cells[1:3], None):
        report.write_report(begun, None if part is None else [cell.name for cell in part])
    assert drawn == ["b", "c", "sweep", "a", "b", "c", "d", "sweep"]
    drawn.clear()
    for cell in cells:
        finish(begun / "cells" / cell.name, cell.hash)
    run(cells, begun, Unbuilt(), "study", cells[3:])
    assert drawn == ["d", "sweep"]
