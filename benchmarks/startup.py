"""How long `positionbias.train` takes from the start of its process to the first logged loss.

    python benchmarks/startup.py [--config configs/quickstart.py] [--warm 3] [--cells 20]

Cold is a fresh compile cache, warm the same cache again (median of `--warm` runs); every run has a fresh run folder
and is stopped once its first line of metrics.jsonl is there, so the evaluation at initialisation is not counted.
The stages come from a second process that does the same in the same order, with a clock between the steps.

A sweep of `--cells` cells that differ in their seed alone is run too, a few steps each, with a fresh compile cache: how
often XLA compiled a train step and anything at all, as JAX logs it, and how long the first cell took and the others.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import record

GOALS = {"cold": 8.0, "warm": 3.0}  # seconds on 2 cores
CELLS = """
from ml_collections import ConfigDict

from positionbias.config import files


def get_config():
    raw = files.read({config!r}).raw()
    train = dict(raw["train"])
    train["steps"] = train.setdefault("log_every", 20)
    return ConfigDict({{**raw, "train": train, "evaluation": {{"items": 256}}, "checkpoint": {{}}}})


def sweep(add):
    for seed in range({cells}):
        add({{"seed": seed}}, name=f"cell-{{seed}}")
"""
STEP = "jit(both)"  # as JAX tells the K steps of `Program.compile`
LONGEST = 300.0  # seconds until a run without a first line is given up


def first_loss(config: str, cache: pathlib.Path, folder: pathlib.Path) -> float:
    """Seconds from the start of the process to its first line of metrics."""
    command = [sys.executable, "-m", "positionbias.train", "--config", config, "--workdir", str(folder)]
    metrics, log = folder / "metrics.jsonl", folder.with_suffix(".log")
    with open(log, "w", encoding="utf-8") as stream:
        started = time.perf_counter()
        run = subprocess.Popen(command, cwd=record.ROOT, env=_environment(cache), stdout=stream, stderr=stream)
        try:
            while not (metrics.exists() and metrics.read_bytes().endswith(b"\n")):
                if run.poll() is not None or time.perf_counter() - started > LONGEST:
                    sys.exit(f"error: no first loss from {' '.join(command)}:\n{log.read_text(encoding='utf-8')}")
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            run.kill()
            run.wait()


def stages_of(config: str, cache: pathlib.Path) -> dict[str, float]:
    """Seconds of each stage in a fresh process."""
    command = [sys.executable, __file__, "--config", config, "--stages", repr(time.time())]
    done = subprocess.run(
        command, cwd=record.ROOT, env=_environment(cache), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def sweep_of(config: str, cells: int, home: pathlib.Path) -> dict[str, Any]:
    """Run a sweep of cells of one shape: what was compiled, and the seconds of cells."""
    file, workdir = home / "cells.py", home / "sweep"
    file.write_text(CELLS.format(config=str((record.ROOT / config).absolute()), cells=cells), encoding="utf-8")
    command = [sys.executable, "-m", "positionbias.sweep", "--config", str(file), "--workdir", str(workdir)]
    given = {**_environment(home / "shared"), "JAX_LOG_COMPILES": "1"}
    done = subprocess.run(command, cwd=record.ROOT, env=given, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    compiled = re.findall(r"Finished XLA compilation of (\S+) in", done.stderr)
    lines = [json.loads(line) for line in (workdir / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    first, *others = [line["seconds"] for line in lines if line["status"] == "finished"]
    told = {"cells": 1 + len(others), "steps_compiled": compiled.count(STEP), "compiled": len(compiled)}
    return {**told, "first": first, "others": statistics.median(others)}


def _environment(cache: pathlib.Path) -> dict[str, str]:
    given = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    return {**given, "POSITIONBIAS_CACHE": str(cache)}


def stages(config_file: str, started: float) -> dict[str, float]:
    """Do what training does up to its first loss; seconds of each stage since the process was `started`."""
    found, before = {"interpreter": time.time() - started}, time.perf_counter()

    def done(stage: str) -> None:
        nonlocal before
        now = time.perf_counter()
        found[stage], before = now - before, now

    import jax

    from positionbias import launch
    from positionbias.config import build, cli, resolve
    from positionbias.training import auto, loop  # noqa: F401  (the loop imports all that training needs)
    from positionbias.training.program import Program

    done("import")
    config = resolve.resolve(cli.load_config(config_file, []))
    launch.set_up(config)
    chosen = auto.resolve(experiment := build.build(config), jax.default_backend(), len(jax.devices()))
    done("build")
    compiled = Program(experiment, chosen).compile()
    done("compile")
    step, state = 0, compiled.fresh()
    while step < config.train.log_every:
        state, metrics = compiled.advance(state, step)
        step += chosen.steps_per_dispatch
    jax.device_get(metrics)
    done("first steps")
    return found


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="Time from process start to the first logged loss.")
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--warm", type=int, default=3, help="warm runs; their median is told")
    parser.add_argument("--cells", type=int, default=20, help="of the sweep")
    parser.add_argument("--stages", type=float, help=argparse.SUPPRESS)  # when the parent started this process
    given = parser.parse_args()
    if given.cells < 2:
        parser.error(f"--cells: {given.cells} is not allowed; allowed: from 2, the first and others.")
    if given.stages is not None:
        print(json.dumps(stages(given.config, given.stages)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        home = pathlib.Path(temporary)
        cold = first_loss(given.config, home / "cache", home / "cold")
        warm = [first_loss(given.config, home / "cache", home / f"warm{i}") for i in range(given.warm)]
        split = {"cold": stages_of(given.config, home / "fresh"), "warm": stages_of(given.config, home / "fresh")}
        sweep = sweep_of(given.config, given.cells, home)
    seconds = {"cold": cold, "warm": statistics.median(warm)}
    print(f"{'':8}{'seconds':>9}{'goal':>7}   " + "".join(f"{stage:>13}" for stage in split["cold"]))
    for kind, goal in GOALS.items():
        parts = "".join(f"{value:13.2f}" for value in split[kind].values())
        print(f"{kind:8}{seconds[kind]:9.2f}{goal:7.1f}   {parts}")
    results = {"config": given.config, "seconds": seconds, "warm_runs": warm, "goals": GOALS, "stages": split}
    print(f"a sweep of {sweep['cells']} cells: {sweep['steps_compiled']} train step compiled (goal 1)", end="; ")
    print(f"{sweep['compiled']} programs in all", end="; ")
    print(f"{sweep['first']:.1f} s for the first cell, {sweep['others']:.1f} s for others (median)")
    results["sweep"] = sweep
    print(f"written: {record.write('startup', results).relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
