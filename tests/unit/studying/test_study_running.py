"""Running a study with its commands replaced: which are left, what goes on, what stops, and how signals pass on."""

import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest

from positionbias import study as entry
from positionbias.evaluation.rows import read_rows, write_rows
from positionbias.spec import ConfigError
from positionbias.studying import definition, recorded, results, running

HOME = pathlib.Path("studies/arms/runs/quick")
SWEEP = (
    "sweep --config configs/arms.py --sweep default --workdir studies/arms/runs/quick/masks --config.train.steps=600"
)
ANALYZE = "analyze --workdir studies/arms/runs/quick/masks/cells/causal --analyses token_norms"
TRAIN = (
    "train --config configs/arms.py --workdir studies/arms/runs/quick/alone --config.seed=7"
    " --config.model.mask=causal | bidirectional"
)
EVALUATE = "evaluate --workdir studies/arms/runs/quick/alone --label again --items 8 --interventions shift"
ALL = [SWEEP, ANALYZE, TRAIN, EVALUATE]


@pytest.fixture
def commands(trained, monkeypatch):
    """Commands leave what they would; `commands.codes[COMMAND]` is how one ends instead, `commands.ran` are all."""

    class Commands:
        def __init__(self):
            self.ran, self.codes, self.cells = [], {}, ["causal", "bidirectional"]

        def __call__(self, command):
            assert command[:2] == [sys.executable, "-m"]
            told = " ".join(command[2:]).removeprefix("positionbias.")
            self.ran.append(told)
            code = self.codes.get(told, 0)
            if told == SWEEP:
                for cell in self.cells:
                    trained(HOME / "masks" / "cells" / cell, items=64, seen="causal" if cell == "causal" else "all")
            elif not code:
                {TRAIN: self.train, EVALUATE: self.evaluate, ANALYZE: self.analyze}[told]()
            return code

        def train(self):
            trained(HOME / "alone", items=8)

        def analyze(self):
            folder = HOME / "masks" / "cells" / "causal" / "analysis"
            folder.mkdir()
            np.savez(folder / "token_norms.npz", embedding=np.linspace(0.4, 0.6, 5))

        def evaluate(self):
            evals = HOME / "alone" / "evals"
            rows = read_rows(evals / "000600.npz")
            write_rows(evals / "again_shift_by_8.npz", {**rows, "answers_changed": 0 * rows["correct"]})

    made = Commands()
    monkeypatch.setattr(running, "_call", made)
    return made


def verdicts():
    found = results.read(pathlib.Path("studies/arms"), "arms").get("quick", {})
    return {name: record["verdict"] for name, record in found.items()}


def go():
    """The study without its report."""
    return running.Runner(definition.read(pathlib.Path(), "arms"), "quick", pathlib.Path("studies/arms")).run()


def test_every_command_is_run_once_and_all_is_judged(written, commands, capsys):
    written()
    assert entry.main(["--name", "arms"]) == 0
    assert commands.ran == ALL
    assert verdicts() == {"apart": "holds", "normed": "holds", "moved": "holds"}
    out = capsys.readouterr().out
    assert f"[1 of 2] masks, about 2 min on two cores: python -m positionbias.{SWEEP}\n" in out
    assert "--config.seed=7 '--config.model.mask=causal | bidirectional'\n" in out  # as a shell takes it
    assert "normed: holds: 0.500 [0.402, 0.598], n = 5, 0 to 1 is asked\n" in out
    assert out.endswith("claims: studies/arms/claims.json\nreport: studies/arms/report.html\n")

    before = pathlib.Path("studies/arms/claims.json").read_bytes()
    assert go() == 0
    assert commands.ran == ALL
    assert capsys.readouterr().out == ""
    assert pathlib.Path("studies/arms/claims.json").read_bytes() == before


def test_of_claims_that_are_named_the_parts_alone_are_run(written, commands, capsys):
    written()
    assert entry.main(["--name", "arms", "--claims", "moved"]) == 0
    assert commands.ran == [TRAIN, EVALUATE]
    assert verdicts() == {"moved": "holds"}
    assert "[1 of 1] alone" in capsys.readouterr().out
    assert entry.main(["--name", "arms", "--claims", " apart,moved"]) == 0
    assert commands.ran == [TRAIN, EVALUATE, SWEEP]  # the analysis is what another claim reads


def test_what_others_need_is_neither_judged_nor_told_where_a_claim_is_named(written, commands, capsys):
    written()
    assert go() == 0
    written("--items 8 --interventions shift", "--items 16 --interventions shift")
    (HOME / "masks" / "cells" / "causal" / "analysis" / "token_norms.npz").unlink()
    commands.ran.clear()
    assert entry.main(["--name", "arms", "--claims", "apart"]) == 0
    assert commands.ran == []
    out, err = capsys.readouterr()
    assert (out.count("normed"), out.count("moved"), err) == (0, 0, "")
    study, records = definition.read(pathlib.Path(), "arms"), results.read(pathlib.Path("studies/arms"), "arms")
    assert results.current(study.claims["moved"], records, "quick") is None  # of other flags: as it was before


def test_a_claim_is_run_though_a_part_that_it_does_not_read_was_changed(written, commands):
    written()
    assert go() == 0
    written('"seed" = 7', '"seed" = 8')
    assert entry.main(["--name", "arms", "--claims", "apart"]) == 0
    with pytest.raises(ConfigError, match=r"^parts\.alone: .* holds runs of what it was"):
        entry.main(["--name", "arms"])


@pytest.mark.parametrize(
    ("lost", "again"),
    [
        ("masks/cells/causal/manifest.json", [SWEEP]),
        ("masks/cells/causal/analysis/token_norms.npz", [ANALYZE]),
        ("alone/evals/again_shift_by_8.npz", [EVALUATE]),
        ("alone/manifest.json", [TRAIN]),
    ],
)
def test_what_was_lost_alone_is_made_again(lost, again, written, commands, monkeypatch):
    study = written()
    assert go() == 0
    (HOME / lost).unlink()
    left = running.Runner(study, "quick", pathlib.Path("studies/arms"))
    told = [
        " ".join(command[2:]).removeprefix("positionbias.")
        for part in study.parts.values()
        for command in left.commands(part)
    ]
    assert told == again
    assert verdicts() == {"apart": "holds", "normed": "holds", "moved": "holds"}


def test_a_finished_run_of_another_config_is_none_of_the_studys(written, commands):
    written()
    assert go() == 0
    path = HOME / "alone" / "manifest.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["hash"], "0123456789ab"))
    study = definition.read(pathlib.Path(), "arms")
    with pytest.raises(ConfigError) as error:
        running.Runner(study, "quick", pathlib.Path("studies/arms"))
    told = "parts.alone: 'studies/arms/runs/quick/alone' holds runs of what it was before it was changed"
    assert str(error.value) == f"{told}; allowed: that folder deleted, or another --workdir."


@pytest.mark.parametrize(
    ("old", "new", "again"),
    [
        ("--items 8 --interventions shift", "--items 9 --interventions shift", EVALUATE.replace("items 8", "items 9")),
        ("--analyses token_norms", "--analyses token_norms --items 9", f"{ANALYZE} --items 9"),
    ],
)
def test_what_was_made_with_other_flags_is_made_again(old, new, again, written, commands):
    written()
    assert go() == 0
    commands.codes[again] = 3
    study = written(old, new)
    assert go() == 3
    assert go() == 3, "until it was"
    kept = results.read(pathlib.Path("studies/arms"), "arms")
    assert [results.current(one, kept, "quick") is None for one in study.claims.values()].count(True) == 1
    assert commands.ran == [*ALL, again, again]


def test_verdicts_whose_runs_are_elsewhere_are_told_to_be_kept(written, commands, capsys):
    written()
    assert go() == 0
    shutil.rmtree("studies/arms/runs")
    commands.codes[SWEEP] = 130
    capsys.readouterr()
    assert entry.main(["--name", "arms"]) == 130
    kept = "; kept from before, its runs are not all here"
    told = [line for line in capsys.readouterr().out.splitlines() if ": holds" in line]
    assert [line.endswith(kept) for line in told] == [False, True, True]


def test_parts_that_no_claim_of_a_scale_reads_are_not_run_there(written, commands):
    study = written()
    paper = running.Runner(study, "paper", pathlib.Path("elsewhere"))
    assert [command[-1] for part in study.parts_at("paper") for command in paper.commands(part)] == [
        "--config.train.steps=900"
    ]
    assert str(paper.folder_of("masks/causal")) == "elsewhere/runs/paper/masks/cells/causal"


@pytest.mark.parametrize(("stop", "code"), [(SWEEP, 130), (ANALYZE, 143), (TRAIN, 137), (EVALUATE, 130)])
def test_a_stopped_command_stops_the_study_which_judges_what_is_there(stop, code, written, commands, capsys):
    written()
    commands.codes[stop] = code
    assert go() == code
    assert commands.ran == ALL[: ALL.index(stop) + 1]
    there = {SWEEP: ["apart"], ANALYZE: ["apart"], TRAIN: ["apart", "normed"], EVALUATE: ["apart", "normed"]}[stop]
    assert list(verdicts()) == there
    told = capsys.readouterr()
    assert "stopped; the same command goes on from there\n" in told.out
    assert told.err == f"part {'masks' if stop in ALL[:2] else 'alone'} ended with exit code {code}\n"
    commands.codes = {}
    assert go() == 0
    assert list(verdicts()) == ["apart", "normed", "moved"]


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_a_part_that_failed_does_not_stop_the_others(code, written, commands, capsys):
    written()
    commands.codes[SWEEP], commands.cells = code, []
    assert go() == code
    assert commands.ran == [SWEEP, TRAIN, EVALUATE]
    assert verdicts() == {"moved": "holds"}
    assert capsys.readouterr().err == f"part masks ended with exit code {code}\n"


def test_what_is_lacking_after_a_failure_was_told_with_it(written, commands, capsys):
    written()
    commands.codes[EVALUATE] = 2
    assert go() == 2
    assert capsys.readouterr().err == "part alone ended with exit code 2\n"


def test_a_broken_cell_does_not_keep_the_others_from_being_measured(written, commands, capsys):
    written()
    commands.codes[SWEEP], commands.cells = 3, ["causal"]
    assert go() == 3
    assert commands.ran == ALL
    assert verdicts() == {"normed": "holds", "moved": "holds"}


def test_a_claim_that_its_runs_cannot_answer_is_told_and_the_others_are_judged(written, commands, capsys):
    written("accuracy('masks/bidirectional') -", "accuracy('masks/bidirectional', query=99) -")
    assert go() == 2
    assert commands.ran == ALL
    assert verdicts() == {"normed": "holds", "moved": "holds"}
    told = "formula: no answer has query_slot = 99; allowed: what the task's items have."
    assert capsys.readouterr().err == f"error: claims.apart: {told}\n"


def test_a_file_that_nothing_made_is_told(written, commands, capsys):
    written("again_shift_by_8", "again_shift_by_9")
    assert go() == 2
    path = "studies/arms/runs/quick/alone/evals/again_shift_by_9.npz"
    told = f"error: claims.moved: '{path}' is not there; allowed: what evaluate and analyze of its part make.\n"
    assert capsys.readouterr().err == told
    assert verdicts() == {"apart": "holds", "normed": "holds"}


@pytest.mark.parametrize("damage", ["masks/cells/causal/evals/000600.npz", "masks/cells/causal/evals/000000.npz"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_run_folder_damaged_meanwhile_keeps_the_verdicts_that_stand(damage, how, written, commands, capsys):
    written()
    assert go() == 0
    before, path = results.read(pathlib.Path("studies/arms"), "arms"), HOME / damage
    path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[:100])
    recorded._rows.cache_clear()  # as in another process
    assert go() == 2
    assert commands.ran == ALL
    assert results.read(pathlib.Path("studies/arms"), "arms") == before
    assert capsys.readouterr().err.startswith("error: claims.apart: ")


def test_two_labels_of_which_one_begins_as_the_other_are_two(written, commands):
    study = written(
        "evaluate.again",
        'evaluate.again2 = "--items 9"\nevaluate.again',
        "changed('alone', evals='again_shift_by_8')",
        "changed('alone', evals='again_shift_by_8') + accuracy('alone', evals='again2')",
    )
    commands.train()
    commands.evaluate()
    left = running.Runner(study, "quick", pathlib.Path("studies/arms"))
    assert [command[6:] for command in left.commands(study.parts["alone"])] == [["again2", "--items", "9"]]


SLEEP = "import time; print('up', flush=True); time.sleep(30)"
DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit({})); time.sleep(30)"


def signalled(number, after=0.0, file=None):
    def send():
        while file is not None and not file.exists():
            time.sleep(0.01)
        time.sleep(after)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


def python(text, file=None):
    """A command that runs `text`, which is under way once `file` is there."""
    up = "" if file is None else f"open({str(file)!r}, 'w').close();"
    head, _, tail = text.rpartition("time.sleep")
    return [sys.executable, "-c", f"{head}{up}time.sleep{tail}" if head else text]


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_ends_with_its_own_code(code):
    assert running._call(python(f"raise SystemExit({code})")) == code
    assert running._call(python("import os; os.kill(os.getpid(), 9)")) == 137


@pytest.mark.parametrize("number", running.SIGNALS)
def test_a_signal_is_passed_on_and_is_the_code(number, tmp_path, request):
    if signal.getsignal(number) == signal.SIG_IGN:  # under nohup hang-ups are
        request.addfinalizer(lambda: signal.signal(number, signal.SIG_IGN))
        signal.signal(number, signal.SIG_DFL)
    before = [signal.getsignal(one) for one in running.SIGNALS]
    signalled(number, file=tmp_path / "up")
    started = time.monotonic()
    code = running._call(
        python("import signal, time; signal.signal(2, signal.SIG_DFL); time.sleep(30)", tmp_path / "up")
    )
    assert code == 128 + number
    assert time.monotonic() - started < 25
    assert [signal.getsignal(one) for one in running.SIGNALS] == before


@pytest.mark.parametrize("own", [0, 3])
def test_a_command_that_ends_by_itself_when_stopped_stops_the_study_too(own, tmp_path):
    signalled(signal.SIGTERM, file=tmp_path / "up")
    assert running._call(python(DEAF.format(own), tmp_path / "up")) == 143


def test_a_signal_while_a_command_starts_reaches_it(monkeypatch):
    def start(*given, popen=running.subprocess.Popen, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return popen(*given, **options)

    monkeypatch.setattr(running.subprocess, "Popen", start)
    started = time.monotonic()
    assert running._call(python("import time; time.sleep(30)")) == 143
    assert time.monotonic() - started < 25


def test_what_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        signalled(signal.SIGHUP, file=tmp_path / "up")
        assert running._call(python("import time; time.sleep(1)", tmp_path / "up")) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
