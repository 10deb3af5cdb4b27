"""A study from its first command to its last, stopped in between, as a user runs it: most of a minute of a core."""

import json
import signal
import subprocess
import sys

import pytest

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "name": "one",
        "task": "inverse_permutation(n=3, alphabet=3)",
        "model": {"layers": 1, "width": 8, "heads": 1},
        "train": {"steps": 2, "batch_size": 4, "replicas": 5, "log_every": 2},
        "evaluation": {"items": 8, "influence_items": 8},
    })


def sweep(add):
    for mask in ("causal", "bidirectional"):
        add({"model.mask": mask}, name=mask)
"""
STUDY = """
title = "Tiny"
about = "Models that have hardly been trained."

[papers]
ours2026 = "Ours 2026"

[parts.masks]
config = "configs/tiny/one.py"
sweep = "default"
analyze.sinks = "--analyses sink_mass"
quick = { cells = "causal", minutes = 0.5 }

[parts.alone]
config = "configs/tiny/one.py"
evaluate.again = "--items 8"
quick = { settings = { "seed" = 7 } }

[claims.looked]
says = "Attention goes somewhere."
paper = "ours2026"
source = "nowhere"
statistic = "analysis('masks/causal', 'sink_mass', 'mass')"
holds = [0, 1]
null = "accuracy('masks/causal')"
scales = ["quick"]

[claims.known]
says = "Nobody is always right by two steps."
paper = "ours2026"
source = "nowhere"
statistic = "accuracy('alone', evals='again') - 1"
holds = [0, inf]
solved = "accuracy('alone') > 2"
scales = ["quick"]
"""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "configs" / "tiny").mkdir(parents=True)
    (tmp_path / "configs" / "tiny" / "one.py").write_text(CONFIG)
    (tmp_path / "configs" / "tiny" / "study.toml").write_text(STUDY)
    return tmp_path


def start(home):
    command = [sys.executable, "-m", "positionbias.study", "--name", "tiny"]
    return subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def commands(out):
    return [line.split(" -m positionbias.")[1].split()[0] for line in out.splitlines() if line[:2] in ("[1", "[2")]


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_and_trains_nothing_twice(home):
    first = start(home)
    for line in first.stdout:
        if "parameters a replica" in line:  # the first part trains
            first.send_signal(signal.SIGTERM)
            break
    code, out, _ = ended(first)
    assert (code, commands(out)) == (143, [])
    assert "stopped; the same command goes on from there" in out
    assert (home / "studies" / "tiny" / "report.html").is_file()

    code, out, err = ended(start(home))
    assert (code, err) == (0, "")
    assert commands(out) == ["sweep", "analyze", "train", "evaluate"]
    assert "looked: holds" in out
    assert "known: fails" in out
    path = home / "studies" / "tiny" / "claims.json"
    told = json.loads(path.read_text())["scales"]["quick"]
    assert {name: len(record["values"]) for name, record in told.items()} == {"looked": 5, "known": 5}
    assert told["looked"]["null_value"] is not None
    assert (told["known"]["solved_by"], told["known"]["at_init"]) == ([False] * 5, None)
    runs = home / "studies" / "tiny" / "runs" / "quick"
    assert sorted(cell.name for cell in (runs / "masks" / "cells").iterdir()) == ["causal"]
    assert (runs / "alone" / "evals" / "again.npz").is_file()

    before = path.read_bytes()
    code, out, err = ended(start(home))
    assert (code, err, commands(out)) == (0, "", [])
    assert path.read_bytes() == before
