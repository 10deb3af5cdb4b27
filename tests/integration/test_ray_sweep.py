"""A sweep in workers of Ray on this machine, some of which are killed on the way; needs the extra `ray`."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from positionbias.training import checkpoint
from positionbias.training.writers import read_metrics

pytest.importorskip("ray", reason="Ray is not installed; it comes with the extra `ray`")
pytestmark = pytest.mark.slow  # starting Ray, and JAX in a process for each cell, takes minutes on two cores

STEPS, FEW_STEPS, EVERY = 1200, 6000, 100
CONFIG = f"""
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{
        "name": "tiny", "task": "inverse_permutation(n=4, alphabet=4)",
        "model": {{"layers": 1, "width": 16, "heads": 2}},
        "train": {{"steps": {STEPS}, "batch_size": 8, "replicas": 1, "log_every": 20}},
        "evaluation": {{"items": 32, "influence_items": 8}},
        "checkpoint": {{"every": {EVERY}}},
    }})


def sweep(add):
    for seed in range(12):
        add({{"seed": seed + 1}}, name=f"cell{{seed}}")


def sweep_few(add):
    for seed in range(3):
        add({{"seed": seed + 1, "train.steps": {FEW_STEPS}}}, name=f"cell{{seed}}")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path / "sweep"


def start(folder, *more):
    command = [sys.executable, "-m", "positionbias.sweep", "--config", "tiny.py", "--workdir", "sweep"]
    return subprocess.Popen(
        [*command, "--executor", "ray", "--cell_resources", "CPU=1", *more],
        cwd=folder.parent,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ledger(folder):
    path = folder / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def worker(folder, process, steps=STEPS):
    """A cell that trains and has saved something, and the process that it runs in."""
    end = time.monotonic() + 400
    while time.monotonic() < end:
        for cell, line in {line["cell"]: line for line in ledger(folder)}.items():
            saved = checkpoint.steps(folder / "cells" / cell / "checkpoints")
            if line["status"] == "running" and saved and saved[-1] < steps:
                return cell, int(line["where"].split()[1])
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no cell has saved anything")


def listening(process):
    """The addresses on which `process` and its descendants listen."""
    parents, sockets = {}, set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue

    def ours(pid):
        return pid == process.pid or (pid in parents and ours(parents[pid]))

    for pid in filter(ours, parents):
        for descriptor in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    rows = [
        row.split() for name in ("tcp", "tcp6") for row in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_twelve_cells_are_finished_though_a_worker_is_killed(folder):
    process = start(folder)
    cell, pid = worker(folder, process)
    os.kill(pid, signal.SIGKILL)
    found = listening(process)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    assert err == ""
    assert found <= LOOPBACK
    assert found

    lines = ledger(folder)
    names = [f"cell{seed}" for seed in range(12)]
    finished = [line["cell"] for line in lines if line["status"] == "finished"]
    assert sorted(finished) == sorted(names)
    (lost,) = [line for line in lines if line["status"] == "lost"]
    assert (lost["cell"], lost["message"].partition(":")[0]) == (cell, "lost its worker and is run again, time 1 of 3")
    begun = [line for line in lines if line["status"] == "running"]
    assert sorted(line["cell"] for line in begun) == sorted([*names, cell])
    assert len({line["where"] for line in begun}) == 13  # each in a process of its own
    for name in names:
        run = folder / "cells" / name
        manifest = json.loads((run / "manifest.json").read_text())
        assert (manifest["status"], manifest["step"], manifest["threads"]) == ("finished", STEPS, 1)
        assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(20, STEPS + 1, 20))
        log = (folder / "logs" / f"{name}.txt").read_text()
        assert (f" of {STEPS}" in log.partition("resumed at step ")[2]) == (name == cell)
    assert "12 of 12 cells finished" in (folder / "report.html").read_text()


def test_a_sweep_that_is_stopped_and_then_killed_goes_on_from_its_checkpoints(folder):
    process = start(folder, "--sweep", "few")
    first, _ = worker(folder, process, FEW_STEPS)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 143, out + err
    assert "stopped: 0 of 3 cells are finished; the same command goes on from there\n" in out
    manifest = json.loads((folder / "cells" / first / "manifest.json").read_text())
    assert manifest["status"] == "stopped"
    assert checkpoint.steps(folder / "cells" / first / "checkpoints")[-1] == manifest["step"]

    process = start(folder, "--sweep", "few")
    log = folder / "logs" / f"{first}.txt"
    while f"resumed at step {manifest['step']} of {FEW_STEPS}" not in log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    _, pid = worker(folder, process, FEW_STEPS)
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < end, "a worker outlives who started it"
        time.sleep(0.1)

    process = start(folder, "--sweep", "few")
    out, err = process.communicate(timeout=900)
    assert (process.returncode, err) == (0, ""), out + err
    finished = [line["cell"] for line in ledger(folder) if line["status"] == "finished"]
    assert sorted(finished) == ["cell0", "cell1", "cell2"]
    for name in finished:
        steps = [line["step"] for line in read_metrics(folder / "cells" / name / "metrics.jsonl")]
        assert steps == list(range(20, FEW_STEPS + 1, 20))


def alive(pid):
    try:
        return pathlib.Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
