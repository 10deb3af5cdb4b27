"""The life of a sweep: what is refused before it starts, and what ends it early."""

import json
import os
import re
import signal
import sys

import fabricate
import pytest

from positionbias import runtime
from positionbias.config import schema
from positionbias.config.sweeps import Cell
from positionbias.files import FileError, WriteError
from positionbias.reporting.report import write_report
from positionbias.spec import ConfigError
from positionbias.sweeping import cell as one
from positionbias.sweeping import ledger, plan
from positionbias.sweeping.executors import LocalExecutor
from positionbias.sweeping.run import run
from positionbias.training import loop
from positionbias.training.run_folder import RunFolder, locked


@pytest.fixture
def cells(tiny):
    """Three cells of which the second, `wide`, has most devices."""
    small = {"train.steps": 4, "train.replicas": 1}
    return [
        Cell("one", tiny({**small, "seed": 1}), {}),
        Cell("wide", tiny({**small, "train.replicas": 2, "train.mesh.replica": 2}), {}),
        Cell("last", tiny({**small, "seed": 2}), {}),
    ]


class Recorder(LocalExecutor):
    """An executor that runs nothing."""

    def __init__(self):
        super().__init__()
        self.cells = []

    def run(self, cells, workdir):
        self.cells += [cell.name for cell in cells]
        return iter(())


def noted(folder):
    """What the ledger says of how cells ended."""
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line["status"] != "running"]


def test_a_cell_that_cannot_be_built_refuses_the_sweep(cells, tiny, tmp_path):
    bad = Cell("bad", tiny({"model.position": "learned(length=2)"}), {})
    recorder = Recorder()
    with pytest.raises(ConfigError, match=r"^cell bad: model\.position: "):
        run([*cells, bad], tmp_path / "sweep", recorder, "study")
    assert recorder.cells == []
    assert list(tmp_path.iterdir()) == []


def test_devices_are_those_of_all_cells_also_when_only_some_are_left(cells, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runtime, "configure", asked.append)
    done = tmp_path / "cells" / "wide"
    done.mkdir(parents=True)
    (done / "manifest.json").write_text(json.dumps({"status": "finished", "hash": cells[1].hash}))
    (tmp_path / "plan.json").write_text('{"cells": []}')
    recorder = Recorder()
    run(cells, tmp_path, recorder, "study")
    assert (recorder.cells, asked) == (["one", "last"], [2])


def test_a_file_in_place_of_a_sweep_folder_or_its_plan_is_refused(cells, tmp_path):
    """Also below a file, where nothing can be."""
    (tmp_path / "file").touch()
    (tmp_path / "sweep" / "plan.json").mkdir(parents=True)
    whole = "a new, an empty or a sweep folder"
    for name, told in [
        ("file", f"'{tmp_path}/file' is a file; allowed: {whole}."),
        ("file/below", f"'{tmp_path}/file/below/plan.json' cannot be read; allowed: a sweep folder as it was written."),
        ("sweep", f"'{tmp_path}/sweep/plan.json' cannot be read; allowed: a sweep folder as it was written."),
    ]:
        with pytest.raises(ConfigError) as refused:
            run(cells, tmp_path / name, Recorder(), "study")
        assert str(refused.value) == f"--workdir: {told}"


@pytest.mark.parametrize("given", [["--cells", "2/2"], ["--cells=2/2"], []])
def test_the_plan_of_a_part_is_told_as_that_of_the_whole_sweep(cells, monkeypatch, given):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "positionbias.sweep", *given, "--workdir", "w"])
    assert plan.planned(cells, "s")["command"] == ["python", "-m", "positionbias.sweep", "--workdir", "w"]


def test_two_sweeps_at_once_are_refused(cells, tmp_path, capsys):
    recorder = Recorder()
    with locked(tmp_path / "sweep"):
        assert run(cells, tmp_path / "sweep", recorder, "study") == 4
    assert capsys.readouterr().err.startswith(f"error: workdir: '{tmp_path}/sweep' is in use by process ")
    assert (recorder.cells, os.listdir(tmp_path / "sweep")) == ([], [".lock"])
    assert run(cells, tmp_path / "sweep", recorder, "study") == 0  # what was refused left nothing foreign
    assert recorder.cells == ["one", "wide", "last"]


def test_a_sweep_that_begins_while_another_is_planned_refuses_it(cells, tiny, tmp_path):
    class Beaten(Recorder):
        def prepare(self, cells, own):
            run([Cell("one", tiny({"seed": 9}), {})], tmp_path, Recorder(), "other")

    with pytest.raises(ConfigError, match="belongs to another sweep, cell 'one' has another config"):
        run(cells, tmp_path, Beaten(), "study")


@pytest.mark.parametrize("error", [WriteError, FileError, MemoryError])
def test_a_cell_without_room_is_told_in_its_own_sentence(cells, tmp_path, monkeypatch, error):
    def without_room(*arguments, programs):
        raise error("no room.")

    monkeypatch.setattr(loop, "train", without_room)
    assert run(cells[:1], tmp_path, LocalExecutor(), "study") == 1
    (line,) = noted(tmp_path)
    assert (line["status"], line["code"], line["message"]) == ("failed", 1, "no room.")


@pytest.mark.parametrize(
    ("name", "content"), [("summary.json", "{}"), ("summary.json", "[1"), ("manifest.json", "[1]")]
)
def test_damaged_files_of_a_cell_do_not_end_the_sweep(cells, tmp_path, capsys, name, content):
    class Ended(Recorder):
        def run(self, cells, workdir):
            self.cells += [cell.name for cell in cells]
            for cell in cells:
                yield {"cell": cell.name, "status": "finished", "code": 0, "message": "", "seconds": 0}

    plan.keep(tmp_path, plan.planned(cells, "study"))
    home = tmp_path / "cells" / "one"
    home.mkdir(parents=True)
    (home / name).write_text(content)
    (home / "config.json").write_text("{}")
    executor = Ended()
    assert run(cells, tmp_path, executor, "study") == 0
    assert executor.cells == ["one", "wide", "last"]
    told = capsys.readouterr()
    assert "cell wide finished after 0 s\n" in told.out
    assert (
        f"cell one finished after 0 s{f': workdir: {str(home / name)!r} ' if name == 'summary.json' else ''}"
        in told.out
    )
    assert f"report: {tmp_path / 'report.html'}\n" in told.out
    page = re.sub("<[^>]*>", " ", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert re.search(f"one +damaged +– +workdir: &#x27;{home / name}&#x27; ", page)
    assert "1 of 3 cells left out as damaged: one." in page


def test_a_finished_run_of_another_config_in_a_cells_folder_fails_that_cell(cells, tmp_path):
    plan.keep(tmp_path, plan.planned(cells[:1], "study"))
    home = tmp_path / "cells" / "one"
    with RunFolder.claim(home, schema.to_dict(cells[2].config), cells[2].hash, ["test"]) as other:
        other.update(status="finished", step=4)
    assert run(cells[:1], tmp_path, LocalExecutor(), "study") == 2
    (line,) = noted(tmp_path)
    assert (line["status"], line["code"], line["message"]) == (
        "failed",
        2,
        f"workdir: '{home}' belongs to another config, {cells[2].hash}, this one is {cells[0].hash} (seed = 2 there, 1"
        " here); allowed: a new folder or this config's run folder.",
    )
    assert json.loads((home / "manifest.json").read_text()) == other.manifest
    with open(tmp_path / "report.html", encoding="utf-8") as page:
        assert f"belongs to another config, {cells[2].hash}" in page.read()


def test_a_ledger_without_room_ends_the_sweep(cells, tmp_path):
    class Ended(Recorder):
        def run(self, cells, workdir):
            (workdir / "ledger.jsonl").mkdir()
            yield one.run_cell(cells[0], workdir, [])

    with pytest.raises(WriteError, match=r"^cannot write '.*/ledger\.jsonl': Is a directory\.$"):
        run(cells, tmp_path, Ended(), "study")


def test_reports_of_cells_are_drawn_again_only_where_something_is_newer(tiny, tmp_path):
    """By the sweep's last word; whoever asks for the report has all of them drawn."""
    sweep = [Cell(name, tiny({"seed": seed}), {}) for seed, name in enumerate(("one", "two", "three"))]
    plan.keep(tmp_path, plan.planned(sweep, "study"))
    for cell in sweep:
        fabricate.write_run(tmp_path / "cells" / cell.name, name=cell.name, items=16, digest=cell.hash)
    pages = {cell.name: tmp_path / "cells" / cell.name / "report.html" for cell in sweep}
    write_report(tmp_path)
    first = {name: page.stat().st_mtime_ns for name, page in pages.items()}
    os.utime(tmp_path / "cells" / "two" / "summary.json")
    pages["three"].unlink()
    assert run(sweep, tmp_path, LocalExecutor(), "study") == 0
    assert pages["three"].exists()
    assert [name for name, page in pages.items() if page.stat().st_mtime_ns > first[name]] == ["two", "three"]
    write_report(tmp_path)
    assert pages["one"].stat().st_mtime_ns > first["one"]


def test_a_torn_ledger_line_does_not_swallow_the_next(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"cell": "one", "sta')
    for name in ("one", "wide"):
        ledger.note(tmp_path, {"cell": name, "status": "failed"})
    torn, *lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert (torn, [json.loads(line)["cell"] for line in lines]) == ('{"cell": "one", "sta', ["one", "wide"])
    assert list(ledger.Reader(tmp_path).latest()) == ["one", "wide"]


def test_a_ledger_is_read_on_from_where_it_was_read(tmp_path):
    """Half a line that is being written is read when it is whole, and another ledger from its beginning."""
    path, reader = tmp_path / "ledger.jsonl", ledger.Reader(tmp_path)
    assert reader.latest() == {}
    ledger.note(tmp_path, {"cell": "one", "status": "running"})
    with open(path, "a") as file:
        file.write('{"cell": "two", "sta')
    assert reader.latest() == {"one": {"cell": "one", "status": "running"}}
    with open(path, "a") as file:
        file.write('tus": "running"}\n')
    ledger.note(tmp_path, {"cell": "one", "status": "failed"})
    assert {name: line["status"] for name, line in reader.latest().items()} == {"one": "failed", "two": "running"}
    path.write_text('{"cell": "three", "status": "running"}\n')
    assert list(reader.latest()) == ["three"]


def test_of_a_cell_one_line_says_that_it_is_finished_whatever_others_are_called(tmp_path):
    for name in ("one", "one more", 'a "one"', "one"):
        ledger.note(tmp_path, {"cell": name, "status": "finished"})
    assert [line["cell"] for line in ledger.lines(tmp_path)] == ["one", "one more", 'a "one"']


def test_an_error_of_ours_in_a_cell_is_told_with_its_traceback(cells, tmp_path, monkeypatch, capsys):
    def broken(*arguments, programs):
        raise ZeroDivisionError("by zero\nindeed")

    monkeypatch.setattr(loop, "train", broken)
    assert run(cells[:1], tmp_path, LocalExecutor(), "study") == 1
    (line,) = noted(tmp_path)
    assert (line["code"], line["message"]) == (1, "ZeroDivisionError: by zero")
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last):\n")
    assert "in broken\n" in told


def test_a_signal_in_the_last_evaluation_of_a_cell_ends_the_sweep(cells, tmp_path, monkeypatch, capsys):
    evaluate = loop.Run._evaluate

    def late(self, state, step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        evaluate(self, state, step)

    monkeypatch.setattr(loop.Run, "_evaluate", late)
    assert run(cells, tmp_path, LocalExecutor(), "study") == 130
    assert [(line["cell"], line["status"], line["code"]) for line in noted(tmp_path)] == [("one", "finished", 130)]
    told = capsys.readouterr().out
    assert told.endswith("stopped: 1 of 3 cells are finished; the same command goes on from there\n")
