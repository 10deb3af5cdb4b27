"""Faults in real runs: each tells the truth about itself, and the same command ends it with the same bits.

`scripts/soak.py` plants many more of them.
"""

import json
import runpy
import shutil

import numpy as np
import pytest

from faults.bench import Bench, Lost, Skipped
from faults.catalogue import FAULTS, Benches
from faults.kills import until_it_ends

PLACES = {
    "a checkpoint whose mark is not there yet": "checkpoints/000080/.mark.json.tmp",
    "rows of an evaluation that are not there yet": "evals/.000200.npz.tmp",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("short"), steps=400)


def test_a_run_that_is_killed_twice_ends_with_the_same_bits(bench):
    """Each time after a file is written, and before it has its name."""
    run = bench.fresh()
    plants = [({"fault": "at_file", "folder": str(run), "named": named, "nth": 2}, None) for named in PLACES.values()]
    assert until_it_ends(bench, run, plants) == len(PLACES)


def _another_loss(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    line = json.loads(lines[3])
    line["loss"][1] = float(np.nextafter(np.float32(line["loss"][1]), np.float32(9)))
    lines[3] = json.dumps(line)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _another_leaf(run):
    path = run / "checkpoints" / "000360" / "mark.json"
    mark = json.loads(path.read_text())
    next(iter(mark["leaves"].values()))["sha256"] = "0" * 64
    path.write_text(json.dumps(mark))


def _another_row(run):
    path = run / "evals" / "000200.npz"
    with np.load(path) as rows:
        found = {name: rows[name] for name in rows.files}
    name = next(name for name, values in found.items() if values.dtype.kind == "f")
    found[name].flat[0] += 1
    np.savez(path, **found)


def _another_summary(run):
    path = run / "summary.json"
    path.write_text(path.read_text().replace('"mean": 0.', '"mean": 0.9', 1))


HARM = {
    "the manifest says": lambda run: (run / "manifest.json").write_text('{"status": "stopped", "step": 400}'),
    "the metrics of": _another_loss,
    "checkpoints [200] are gone": lambda run: shutil.rmtree(run / "checkpoints" / "000200"),
    "checkpoints [320] are gone": lambda run: shutil.rmtree(run / "checkpoints" / "000320"),
    "the last checkpoint is not whole": lambda run: shutil.rmtree(run / "checkpoints" / "000400" / "state"),
    "checkpoint 360 is another": _another_leaf,
    "the evaluation 000200.npz is another": _another_row,
    "the summary is another": _another_summary,
    "files ['left.tmp']": lambda run: (run / "left.tmp").touch(),
}


@pytest.mark.parametrize("what", HARM)
def test_what_is_lost_is_found(bench, what):
    run = bench.finished()
    bench.same(run)
    HARM[what](run)
    with pytest.raises(Lost) as error:
        bench.same(run)
    assert what in str(error.value)


def test_a_checkpoint_that_a_signal_asked_for_takes_the_place_of_the_oldest_of_the_last(bench):
    checkpoints = (run := bench.finished()) / "checkpoints"
    (checkpoints / "000320").rename(checkpoints / "000380")
    bench.same(run)


def test_a_soak_tells_the_first_seed_lost_also_where_another_was_skipped(root):
    soak = runpy.run_path(str(root / "scripts" / "soak.py"))
    row = soak["Row"]
    rows = {"disk": row(3, 1, 7, "no disk"), "kill": row(2, 1, 0), "clock": row(1), "full": row(0, skipped="no disk")}
    assert [line.split(" | ")[-1] for line in soak["table"](rows).splitlines()[2:-1]] == [
        "7; skipped: no disk |",
        "0 |",
        "- |",
        "skipped: no disk |",
    ]


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    return Benches(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_survived(benches, name):
    try:
        benches.plant(name, 1)
    except Skipped as error:
        pytest.skip(str(error))
