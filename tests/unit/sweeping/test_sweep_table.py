"""Where the cells of a sweep stand, read while it runs, and the table that a terminal shows of it."""

import io
import json
import os
import re
import shutil
import time

import fabricate
import pytest

from positionbias import sweep
from positionbias.config import sweeps
from positionbias.config.sweeps import Cell
from positionbias.reporting.report import write_report
from positionbias.spec import ConfigError
from positionbias.sweeping import plan, standing, table
from positionbias.sweeping.standing import Standing, Watch, measured
from positionbias.sweeping.table import Live


@pytest.fixture
def half_done(tiny, tmp_path):
    """A sweep of which one cell runs, with a line of metrics half written; others failed, wait, or are at an end."""
    names = ("done", "runs", "broke", "lost", "stops", "begins", "later")
    cells = [Cell(name, tiny({"train.steps": 600, "seed": seed}), {}) for seed, name in enumerate(names)]
    planned = [{"name": cell.name, "hash": cell.hash, "overrides": {}} for cell in cells]
    (tmp_path / "plan.json").write_text(json.dumps({"name": "study", "cells": planned}))
    runs = {"done": "finished", "runs": "running", "broke": "running", "lost": "running", "stops": "stopped"}
    for cell in cells:
        if cell.name in runs:
            home = tmp_path / "cells" / cell.name
            fabricate.write_run(home, name=cell.name, status=runs[cell.name], items=16, digest=cell.hash)
    with open(tmp_path / "cells" / "runs" / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 400, "seconds": 6.7, "loss": [1.1, 1.1, 1.1, 1.1]}\n{"step": 420, "sec')
    lines = [
        {"cell": "done", "status": "finished"},
        {"cell": "broke", "status": "running"},
        {"cell": "broke", "status": "failed", "code": 3, "message": "the loss is not finite\nat step 340"},
        {"cell": "runs", "status": "failed", "code": 1, "message": "an earlier try"},
        {"cell": "runs", "status": "running"},
        {"cell": "lost", "status": "running"},
        {"cell": "lost", "status": "lost", "code": 1, "message": "lost its worker"},
        {"cell": "begins", "status": "running"},
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"cell": "later", "st')
    return cells, tmp_path


def copied(folder):
    """A run of another config, in a cell's place."""
    if folder.exists():
        shutil.rmtree(folder)
    fabricate.write_run(folder, items=16)


def test_every_cell_of_a_sweep_that_runs_is_told(half_done):
    cells, folder = half_done
    found = {one.name: one for one in Watch(folder, cells).look()}
    assert [(one.name, one.state, one.step) for one in found.values()] == [
        ("done", "finished", 600),
        ("runs", "running", 400),
        ("broke", "failed", 340),
        ("lost", "waiting", 340),
        ("stops", "stopped", 340),
        ("begins", "running", 0),
        ("later", "waiting", 0),
    ]
    summary = json.loads((folder / "cells" / "done" / "summary.json").read_text())["accuracy"]
    assert found["done"].measured == "accuracy {mean:.4f} [{low:.4f}, {high:.4f}]".format(**summary)
    assert found["runs"].measured == "training loss 1.1000"
    assert found["runs"].eta == "ETA 0:03"  # 200 steps at 60 a second, as its lines tell
    assert [found[name].told for name in ("done", "runs", "broke", "lost", "stops")] == [
        "",
        "",
        "the loss is not finite",
        "lost its worker",
        "stopped by signal 15",
    ]


def test_the_report_of_a_sweep_that_runs_is_written(half_done):
    _, folder = half_done
    text = re.sub("<[^>]*>", " ", write_report(folder, ["runs"]).read_text(encoding="utf-8"))
    assert "1 of 7 cells finished" in text
    for row in (
        "runs +running +– ",
        "broke +failed +3 +the loss is not finite",
        "begins +running +–",
        "1 of 7 cells not run yet: later.",
    ):
        assert re.search(row, text), row


def test_a_result_before_the_end_says_when_and_one_at_the_start_nothing(half_done):
    cells, folder = half_done
    watch, path = Watch(folder, cells), folder / "cells" / "runs" / "summary.json"
    summary = json.loads((folder / "cells" / "done" / "summary.json").read_text())
    for steps, told in ((300, r"accuracy 0\.\d{4} \[.*\] at step 300 of 600"), (0, "training loss 1.1000")):
        path.write_text(json.dumps({**summary, "steps": steps, "of": 600}))
        os.utime(path, ns=(steps, steps))
        assert re.fullmatch(told, watch.look()[1].measured)
    path.write_text("{")
    assert watch.look()[1].measured == "training loss 1.1000"


def test_what_is_measured_is_the_loss_where_a_task_is_judged_by_it():
    whole = {"mean": 0.25, "low": 0.2, "high": 0.3}
    summary = {"steps": 4, "of": 4, "accuracy": {"mean": None, "low": None, "high": None}, "loss": whole}
    assert measured(summary) == "loss 0.2500 [0.2000, 0.3000]"
    assert measured({**summary, "loss": {"mean": 0.25, "low": None, "high": None}}) == "loss 0.2500"
    assert measured({**summary, "of": 0, "steps": 0}) == measured({}) == ""
    del summary["loss"]
    assert measured(summary) == ""


def test_a_run_that_is_not_heard_of_is_told(half_done):
    cells, folder = half_done
    for name in ("manifest.json", "metrics.jsonl"):
        ago = time.time() - 1260
        os.utime(folder / "cells" / "runs" / name, (ago, ago))
    assert Watch(folder, cells).look()[1].told == "no sign of it for 21 minutes"


@pytest.mark.parametrize("content", ["{", "[1]", '{"status": "running"}', '{"status": 3, "step": 4}', "[" * 100_000])
def test_damaged_files_leave_a_cell_waiting_and_the_table_there(half_done, content):
    cells, folder = half_done
    for name in ("manifest.json", "metrics.jsonl", "summary.json"):
        (folder / "cells" / "stops" / name).write_text(content)
    assert Watch(folder, cells).look()[4] == Standing("stops", "waiting", 0, 600)


@pytest.mark.parametrize(
    ("seconds", "step", "eta"),
    [("Infinity", 400, "ETA 0:03"), ("9" * 400, 400, "ETA 0:03"), ("1e299", 440, ""), ("-1", 440, "")],
)
def test_of_seconds_that_cannot_be_no_time_is_told(half_done, seconds, step, eta):
    cells, folder = half_done
    with open(folder / "cells" / "runs" / "metrics.jsonl", "a") as metrics:
        metrics.write(f'\n{{"step": 440, "seconds": {seconds}, "loss": [1.1]}}\n')
    runs = Watch(folder, cells).look()[1]
    assert (runs.step, runs.eta) == (step, eta)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: shutil.rmtree(folder), "its folder is gone"),
        (lambda folder: (folder / "manifest.json").unlink(), "its manifest.json cannot be read"),
        (copied, "its folder holds a run of another config, 1f3a9c0b"),
    ],
)
def test_of_a_finished_cell_whose_run_is_gone_the_ledger_is_told(half_done, harm, told):
    cells, folder = half_done
    harm(folder / "cells" / "done")
    with open(folder / "ledger.jsonl", "a") as ledger:
        ledger.write('\n{"cell": "done", "status": "finished", "where": "process 7 on here"}\n')
    found = Watch(folder, cells).look()[0]
    assert (found.state, found.step, found.told) == ("waiting", 0, f"was finished in process 7 on here, but {told}")


def test_a_run_of_another_config_is_no_cell_of_a_sweep(half_done):
    cells, folder = half_done
    copied(folder / "cells" / "later")
    other = "its folder holds a run of another config, 1f3a9c0b"
    assert Watch(folder, cells).look()[-1] == Standing("later", "waiting", 0, 600, told=other)
    text = re.sub("<[^>]*>", " ", write_report(folder, []).read_text(encoding="utf-8"))
    assert re.search(f"later +damaged +– +{other}", text)
    assert "1 of 7 cells finished" in text


def test_a_finished_cell_is_read_once(half_done, monkeypatch):
    cells, folder = half_done
    watch, read = Watch(folder, cells), []
    watch.look()
    monkeypatch.setattr(standing, "read_json", lambda path: read.append(path.parent.name))
    watch.look()
    assert "done" not in read
    assert "runs" in read


STANDINGS = [
    Standing("a", "finished", 8, 8, "", "accuracy 1.0000"),
    Standing("bc", "running", 4, 8, "ETA 1:20", "training loss 0.5000"),
    Standing("d", "waiting", 0, 8),
    Standing("e", "failed", 2, 8, "", "", "by zero"),
    Standing("f", "finished", 8, 8),
]


def test_a_table_has_a_row_a_cell_and_folds_the_finished_ones_first():
    assert table.table(STANDINGS) == [
        "5 cells: 2 finished, 1 waiting, 1 failed, 1 running",
        "a   finished  8/8  100%            accuracy 1.0000",
        "bc  running   4/8  50%   ETA 1:20  training loss 0.5000",
        "d   waiting",
        "e   failed    2/8  25%                                   by zero",
        "f   finished  8/8  100%",
    ]
    assert table.table(STANDINGS, 5) == table.table(STANDINGS)
    assert [line.split()[0] for line in table.table(STANDINGS, 4)] == ["5", "bc", "d", "e", "and"]
    assert table.table(STANDINGS, 4)[-1] == "and 2 finished"
    assert [line.split()[0] for line in table.table(STANDINGS, 2)] == ["5", "bc", "and"]
    assert table.table(STANDINGS, 1) == [table.table(STANDINGS)[0], "and 2 finished, 1 waiting, 1 failed, 1 running"]


class Terminal(io.StringIO):
    """Keeps what a person would see: `screen()` applies the few codes that are used."""

    def isatty(self):
        return True

    def screen(self):
        rows = [""]
        for part in re.split("(\x1b\\[\\d+A|\r|\x1b\\[J|\n)", self.getvalue()):
            if part == "\n":
                rows.append("")
            elif up := re.fullmatch("\x1b\\[(\\d+)A", part):
                cut = len(rows) - int(up[1]) - 1
                assert cut >= 0
                rows, gone = rows[: cut + 1], rows[cut + 1 :]
                assert all(gone[:-1]) or not gone
                rows[-1] = ""
            elif part not in ("\r", "\x1b[J"):
                rows[-1] += part
        return rows


class Looked:
    """A watch that sees the same, one cell finishing after each look."""

    def __init__(self):
        self.looks = 0

    def look(self):
        self.looks += 1
        return STANDINGS


@pytest.fixture
def live(monkeypatch):
    def start(stream, every=1000.0):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(f"sys.{name}", stream)
        monkeypatch.setattr(table, "EVERY", every)
        monkeypatch.setattr(table, "PLAIN_SECONDS", every)
        return Live(Looked())

    return start


def test_the_table_stays_below_what_is_printed_and_is_redrawn_in_place(live):
    import sys

    terminal = Terminal()
    with live(terminal) as shown:
        print("first")
        assert not sys.stdout.isatty()
        shown._draw()
        print("second", file=sys.stderr)
        print("half a ", end="")
        shown._draw()
        assert terminal.screen() == ["first", "second", *table.table(STANDINGS), ""]
        print("line")
        print("a rest", end="")
    assert sys.stdout is terminal
    assert terminal.screen() == ["first", "second", "half a line", "a rest", *table.table(STANDINGS), ""]


def test_a_terminal_gets_as_many_rows_and_columns_as_it_has(live, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(terminal, "fileno", lambda: 1)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((20, 6)))
    with live(terminal):
        pass
    assert terminal.screen() == [
        "5 cells: 2 finished",
        "bc  running  4/8  5",
        "e   failed   2/8  2",
        "and 2 finished, 1 w",
        "",
    ]


@pytest.mark.parametrize(("stream", "told"), [(Terminal, "bc  running"), (io.StringIO, "")])
def test_it_is_looked_at_again_and_again_and_without_a_terminal_told_in_a_line_once(live, stream, told):
    made = stream()
    with live(made, 0.01) as shown:
        while shown._watch.looks < 3:
            time.sleep(0.01)
    if told:
        assert told in made.getvalue()
    else:
        assert made.getvalue() == "5 cells: 2 finished, 1 waiting, 1 failed, 1 running; bc 4/8 ETA 1:20\n"


def test_the_status_of_a_sweep_is_printed_and_nothing_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.py").write_text(
        "def get_config():\n    return {'name': 's', 'task': 'inverse_permutation(n=4)', 'train': {'steps': 40}}\n"
        "def sweep(add):\n    add({'seed': 1}, name='a')\n    add({'seed': 2}, name='b')\n"
    )
    arguments = ["--config", "study.py", "--status"]
    assert sweep.main([*arguments, "--workdir", "mistyped"]) == 0
    told = f"nothing there yet: '{tmp_path}/mistyped' {{}}, so none of 2 cells has begun\n"
    assert capsys.readouterr().out == told.format("does not exist")
    (tmp_path / "mistyped").mkdir()
    assert sweep.main([*arguments, "--workdir", "mistyped"]) == 0
    assert capsys.readouterr().out == told.format("holds no plan")
    assert list((tmp_path / "mistyped").iterdir()) == []
    plan.keep(tmp_path / "mistyped", plan.planned(sweeps.cells("study.py"), "study"))
    arguments += ["--workdir", "mistyped"]
    assert sweep.main(arguments) == 0
    assert capsys.readouterr().out == "2 cells: 2 waiting\na  waiting\nb  waiting\n"
    assert not (tmp_path / "sweeps").exists()
    assert sweep.main([*arguments, "--cells", "2/2"]) == 0
    assert capsys.readouterr().out == "1 cell: 1 waiting\nb  waiting\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        sweep.main([*arguments[:-1], "other"])
