"""The documented commands, run as a user runs them."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from positionbias import evaluate, train
from positionbias.launch import IN_USE
from positionbias.spec import ConfigError

CONFIG = """
from ml_collections import ConfigDict


def get_config(n: int = 4):
    return ConfigDict({
        "name": "tiny", "task": f"inverse_permutation(n={n}, alphabet=4)",
        "model": {"layers": 1, "width": 16, "heads": 2},
        "train": {"steps": 40, "batch_size": 8, "replicas": 2, "log_every": 4},
        "evaluation": {"items": 32, "influence_items": 8},
        "checkpoint": {"every": 8},
    })


def sweep(add):
    for mask in ("causal", "bidirectional"):
        add({"model.mask": mask}, name=mask)


def sweep_rate(add):
    add({"optimizer.learning_rate": 1e-2, "train.steps": 8}, name="fine")
    add({"optimizer.learning_rate": 1e35, "optimizer.name": "sgd", "train.steps": 8}, name="bursts")
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def command(module, *arguments):
    return [sys.executable, "-m", f"positionbias.{module}", *map(str, arguments)]


def run(module, *arguments, cwd, **options):
    return subprocess.run(
        command(module, *arguments), cwd=cwd, capture_output=True, text=True, timeout=240, check=False, **options
    )


def entry(module, *arguments):
    """An entry in this process, whose devices stay: what importing and starting JAX cost is spent once."""
    assert len(jax.devices()) == 2
    return module.main([str(argument) for argument in arguments])


def test_train_evaluate_report_and_load(config, tmp_path, capsys):
    arguments = ["--config", config, "--workdir", "run", "--config.train.steps=8"]
    trained = run("train", *arguments, cwd=tmp_path)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert "accuracy by slot that answers" in trained.stdout
    assert "report: run/report.html" in trained.stdout
    for name in ("config.json", "manifest.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"

    again = run("train", *arguments, cwd=tmp_path)
    assert again.returncode == 0
    assert "finished at step 8" in again.stdout

    assert trained.stdout.index("evaluated at step 8 of 8") < trained.stdout.index("accuracy by slot")

    evaluated = run("evaluate", "--workdir", "run", "--items", "50", "--label", "more", cwd=tmp_path)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "evals" / "more.json").read_text())["by_query_position"][0]["count"] == 100

    (tmp_path / "run" / "evals" / "more.npz").rename(tmp_path / "more.npz")
    unnamed = run("evaluate", "--workdir", "run", "--items", "50", cwd=tmp_path)
    assert "evaluated at step 8 of 8" in unnamed.stdout
    with np.load(tmp_path / "run" / "evals" / "step000008.npz") as a, np.load(tmp_path / "more.npz") as b:
        assert all(a[k].tobytes() == b[k].tobytes() for k in a.files)  # the same items, whatever the label
    shorter = "inverse_permutation(n=3, alphabet=5)"  # the model has a table of learned positions
    assert entry(evaluate, "--workdir", tmp_path / "run", "--task", shorter) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "run" / "evals" / "inverse_permutation_n_3__alphabet_5_step000008.json").exists()
    longer = run("evaluate", "--workdir", "run", "--task", "inverse_permutation(n=5, alphabet=3)", cwd=tmp_path)
    assert longer.returncode == 2
    assert longer.stderr.startswith("error: --task: ")

    reported = run("report", "--workdir", "run", cwd=tmp_path)
    assert (reported.returncode, reported.stderr) == (0, "")

    config.unlink()  # a run is reloaded without its config file
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
        import positionbias
        run = positionbias.load("run")
        outputs, sites = run.apply(run.sample(5), record=["layers.*.attention.pattern"])
        print(run.step, run.config.name, outputs.shape, sites["layers.0.attention.pattern"].shape)
        every = positionbias.load("run", replica="all")
        print(every.apply(every.sample(5))[0].shape)
    """),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.stdout.splitlines() == ["8 tiny (5, 8, 8) (5, 2, 8, 8)", "(2, 5, 8, 8)"], loaded.stderr


def test_the_default_folder_is_named_by_config_and_hash(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert entry(train, "--config", config, "--stop_after", "4") == 0
    assert "the same command goes on from there" in capsys.readouterr().out
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert json.loads((folder / "config.json").read_text())["hash"] == folder.name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_a_checkpoint_and_their_code(config, tmp_path, number, code):
    command = [sys.executable, "-m", "positionbias.train", "--config", str(config), "--workdir", "run"]
    command += ["--config.train.steps=400000", "--config.train.log_every=4"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "run" / "checkpoints")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"{manifest['step']:06d}" / "mark.json").exists()


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def test_two_processes_in_one_folder(config, tmp_path, capsys):
    command = [sys.executable, "-m", "positionbias.train", "--config", str(config), "--workdir", "run"]
    command += ["--config.train.steps=400000"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl")
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert second.returncode == 4
        assert second.stderr.startswith("error: ")
        assert str(first.pid) in second.stderr
        assert second.stderr.count("\n") == 1
        assert entry(evaluate, "--workdir", tmp_path / "run") == IN_USE == 4
        assert capsys.readouterr().err == second.stderr
    finally:
        first.kill()
        first.wait()


def test_parts_of_a_sweep_share_its_folder_and_it_skips_finished_cells_and_lists_failed_ones(config, tmp_path):
    arguments = ["--config", config, "--sweep", "rate", "--workdir", "sweep"]
    parts = [
        subprocess.Popen(
            command("sweep", *arguments, "--cells", cells),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for cells in ("1/2", "bursts")
    ]
    (_, fine), (_, bursts) = (part.communicate(timeout=240) for part in parts)
    assert ([part.returncode for part in parts], fine) == ([0, 3], "")
    assert "1 of 1 cells failed" in bursts
    assert "bursts: the " in bursts
    assert "not finite at step" in bursts
    assert (tmp_path / "sweep" / "cells" / "fine" / "summary.json").exists()
    assert (tmp_path / "sweep" / "report.html").exists()
    ledger = [json.loads(line) for line in (tmp_path / "sweep" / "ledger.jsonl").read_text().splitlines()]
    assert sorted((line["cell"], line["status"], line.get("code", -1)) for line in ledger) == [
        ("bursts", "failed", 3),
        ("bursts", "running", -1),
        ("fine", "finished", 0),
        ("fine", "running", -1),
    ]
    before = (tmp_path / "sweep" / "cells" / "fine" / "summary.json").stat().st_mtime_ns
    again = run("sweep", *arguments, cwd=tmp_path)
    assert again.returncode == 3
    assert "1 of 2 cells failed" in again.stderr
    assert "1 of 2 cells are finished already" in again.stdout
    assert (tmp_path / "sweep" / "cells" / "fine" / "summary.json").stat().st_mtime_ns == before


def test_a_sweep_with_a_cell_that_cannot_be_built_is_refused_whole(config, tmp_path):
    done = run(
        "sweep", "--config", config, "--workdir", "sweep", "--config.model.position=learned(length=4)", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cell causal: model.position: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("module", ["train", "evaluate", "sweep", "report", "list", "match"])
def test_help_is_quick_to_read_and_needs_no_device(module, tmp_path):
    code = (
        f"import sys, runpy; sys.argv = ['x', '--help']; runpy.run_module('positionbias.{module}', run_name='__main__')"
    )
    probe = "import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); " + code
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert f"python -m positionbias.{module}" in done.stdout
    assert done.stdout.rstrip().endswith("False")


@pytest.mark.parametrize("away", ["| head -1", ">/dev/full", ">&-"])
def test_a_run_outlives_whoever_reads_its_output(config, tmp_path, away):
    command = f"{sys.executable} -m positionbias.train --config {config} --workdir run --config.train.steps=8 {away}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"


def test_damaged_files_of_a_finished_run_are_told_in_one_sentence(config, tmp_path):
    arguments = ["--config", config, "--workdir", tmp_path / "run", "--config.train.steps=8"]
    assert entry(train, *arguments) == 0
    for name in ("summary.json", "manifest.json"):
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        for content in (b"[1, 2]", b"\xff\xfe", b"[" * 100_000, whole[:-40]):
            path.write_bytes(content)
            with pytest.raises(ConfigError, match=name) as told:
                entry(train, *arguments)
            assert "\n" not in str(told.value)
        done = run("train", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr == f"error: --{told.value}\n"
        path.write_bytes(whole)
