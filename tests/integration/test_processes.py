"""Several processes that train one run: the same numbers, one folder, and a stop at the same step."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from sockets import LOOPBACK, listening

from positionbias.training import checkpoint
from positionbias.training.writers import read_metrics

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "processes",
        "task": "inverse_permutation(n=4, alphabet=4)",
        "model": {"layers": 1, "width": 16, "heads": 2},
        "train": {"steps": 4000, "batch_size": 8, "replicas": 1, "log_every": 20, "microbatch": 4},
        "checkpoint": {"every": 1000},
        "evaluation": {"items": 24, "batch_size": 16, "influence_items": 8},
    })
"""


def start(folder, *flags):
    command = [sys.executable, "-m", "positionbias.train", "--config", str(folder / "config.py"), *flags]
    settings = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    return tmp_path


def wait_for(path, process):
    for _ in range(9000):  # others may have the cores
        if path.exists() and path.read_bytes().count(b"\n"):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} was not written")


def test_two_processes_stop_together_and_one_goes_on(folder):
    """The batch is shared by devices of both; a signal to the second ends both, and the first one's folder resumes."""
    address = f"127.0.0.1:{free_port()}"
    both = [start(folder, "--workdir", "two", "--processes", f"{address},2,{index}") for index in (0, 1)]
    wait_for(folder / "two" / "metrics.jsonl", both[0])
    if pathlib.Path("/proc/self/net/tcp").exists():
        for process in both:
            assert listening(process.pid) <= LOOPBACK, "where the command line said, and no other machine sees it"
    both[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [143, 143], told
    manifest = json.loads((folder / "two" / "manifest.json").read_text())
    step = manifest["step"]
    assert (manifest["status"], checkpoint.steps(folder / "two" / "checkpoints")[-1]) == ("stopped", step)
    assert manifest["auto"]["mesh"] == "1 replica x 2 data x 1 fsdp"
    for index, (out, _) in enumerate(told):
        assert f"process {index} of 2 has of the mesh: replica 0, data {index}, fsdp 0" in out
    assert "step" not in told[1][0], "the second process tells no progress"

    last = str(step + 100)
    for workdir in ("two", "one"):
        flags = ("--stop_after", last, "--config.train.mesh.data=auto")
        out, err = (alone := start(folder, "--workdir", workdir, *flags)).communicate(timeout=240)
        assert alone.returncode == 0, out + err
    resumed, unbroken = (read_metrics(folder / workdir / "metrics.jsonl") for workdir in ("two", "one"))
    assert [line["step"] for line in resumed] == [line["step"] for line in unbroken]
    for name in ("loss", "gradient_norm"):
        found, known = (np.array([line[name] for line in lines]) for lines in (resumed, unbroken))
        np.testing.assert_allclose(found, known, rtol=1e-4)
        np.testing.assert_allclose(found[:1], known[:1], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [(0, 1), (1,)], ids=["both", "the second"])
def test_two_processes_are_killed_and_one_goes_on_with_the_same_curve(folder, killed):
    """Of a whole run: kill -9 after a checkpoint, amid steps that no checkpoint has; the rest is trained alone."""
    address = f"127.0.0.1:{free_port()}"
    both = [start(folder, "--workdir", "two", "--processes", f"{address},2,{index}") for index in (0, 1)]
    try:
        wait_for(folder / "two" / "checkpoints" / "001000" / "mark.json", both[0])
        time.sleep(0.5)
        for index in killed:
            both[index].kill()
        told = [process.communicate(timeout=900) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [both[index].returncode for index in killed] == [-signal.SIGKILL] * len(killed), told
    assert both[0].returncode in ((-signal.SIGKILL,) if 0 in killed else (1,)), told
    assert json.loads((folder / "two" / "manifest.json").read_text())["status"] in ("running", "failed")
    step = checkpoint.steps(folder / "two" / "checkpoints")[-1]
    assert checkpoint.whole(folder / "two" / "checkpoints", step)

    for workdir, said in (("two", f"resumed at step {step} of 4000"), ("one", "")):
        out, err = (alone := start(folder, "--workdir", workdir)).communicate(timeout=900)
        assert alone.returncode == 0, out + err
        assert said in out
    resumed, unbroken = (read_metrics(folder / workdir / "metrics.jsonl") for workdir in ("two", "one"))
    assert [line["step"] for line in resumed] == [line["step"] for line in unbroken] == list(range(20, 4001, 20))
    for name in ("loss", "gradient_norm"):
        found, known = (np.array([line[name] for line in lines]) for lines in (resumed, unbroken))
        np.testing.assert_allclose(found, known, rtol=1e-4)
