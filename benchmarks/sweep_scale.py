"""What a sweep of many cells costs beside training them: plan, ledger, table and report, with cells that train nothing.

    python benchmarks/sweep_scale.py [--cells 10000]

One cell is trained for a step; all others get what it left in its folder, by an executor that otherwise does what the
local one does. Timed are the stages of the entry: resolving the cells, building one of each program (which refuses a
sweep before anything is written), the plan, noting that cells begin and end, looking where they stand, the report, and
the same command again when all is finished. Memory is the most that the process has held by the end of a stage.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import record
from given import check

from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.config.sweeps import Cell, cells
from positionbias.files import read_json
from positionbias.reporting.report import write_report
from positionbias.sweeping import executors, ledger, plan, run
from positionbias.sweeping.standing import Watch

CONFIG = """
from ml_collections import ConfigDict

from positionbias.config.sweeps import product


def get_config():
    return ConfigDict({
        "name": "scale",
        "task": "inverse_permutation(n=4, alphabet=4)",
        "model": {"layers": 1, "width": 16, "heads": 2},
        "train": {"steps": 1, "batch_size": 2, "replicas": 2, "log_every": 1},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    })


def sweep(add):
    axes = {
        "seed": list(range(-(-COUNT // PROGRAMS))),
        "model.mask": ["causal", "bidirectional", "causal & sliding_window(4)", "prefix(2)"],
        "model.position": ["none", "rope", "alibi", "learned", "sinusoidal"],
    }
    for number, overrides in enumerate(product(axes)):
        if number < COUNT:
            add(overrides, name=f"cell-{number}")
"""
KEPT = ("config.json", "metrics.jsonl", "summary.json", "report.html")
NAME = "{:<46}"
PROGRAMS = 20  # four masks times five position schemes
MOST = 100_000


class Idle(executors.LocalExecutor):
    """Cells end as soon as they begin, with the files of one that was trained."""

    def __init__(self, trained: pathlib.Path) -> None:
        super().__init__()
        self._trained, self._manifest = trained, read_json(trained / "manifest.json")

    def run(self, cells: list[Cell], workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
        for cell in cells:
            ledger.note(workdir, {"cell": cell.name, "status": "running", "where": "here"})
            folder = workdir / "cells" / cell.name
            folder.mkdir(parents=True)
            # A cell is finished by the hash of its own config, and its report is not drawn again if it is the newest.
            (folder / "manifest.json").write_text(json.dumps({**self._manifest, "hash": cell.hash}))
            for name in KEPT:
                shutil.copyfile(self._trained / name, folder / name)
            line = {"cell": cell.name, "status": "finished", "code": 0, "message": "", "seconds": 0.0, "where": "here"}
            ledger.note(workdir, line)
            yield line


def measure(count: int, home: pathlib.Path) -> list[dict[str, Any]]:
    """The stages in order: "stage", "seconds" by the clock, "processor" seconds, "megabytes" held at most so far."""
    found: list[dict[str, Any]] = []

    def timed(stage: str, do: Callable[[], Any]) -> Any:
        clock, processor = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            made = do()
        row = {"stage": stage, "seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
        row["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found.append(row)
        print(
            NAME.format(stage), *(f"{row[name]:>11.2f}" for name in ("seconds", "processor", "megabytes")), flush=True
        )
        return made

    config, workdir = home / "scale.py", home / "sweep"
    config.write_text(CONFIG.replace("COUNT", str(count)).replace("PROGRAMS", str(PROGRAMS)))
    all_of_them: list[Cell] = timed("resolve all cells", lambda: cells(str(config)))
    one = home / "one"
    timed("train one, to have its files", lambda: _train(all_of_them[:1], one))
    idle = Idle(one / "cells" / all_of_them[0].name)
    timed("build one of each program", lambda: idle.prepare(all_of_them, all_of_them))
    workdir.mkdir()
    planned = plan.planned(all_of_them, "scale")
    timed("write the plan", lambda: plan.keep(workdir, planned))
    watch = Watch(workdir, all_of_them)
    timed("note that all begin and end, with their files", lambda: list(idle.run(all_of_them, workdir)))
    timed("look where they stand, for the first time", watch.look)
    timed("look again", watch.look)
    timed("write the report of the sweep", lambda: write_report(workdir, ()))
    code = timed("the same command again", lambda: run.run(all_of_them, workdir, Idle(one), "scale"))
    assert code == 0
    for name in ("plan.json", "ledger.jsonl", "report.html"):
        size = (workdir / name).stat().st_size
        found.append({"stage": name, "bytes": size})
        print(NAME.format(name), f"{size / 2**20:>11.2f} MiB")
    return found


def _train(some: list[Cell], workdir: pathlib.Path) -> None:
    code = run.run(some, workdir, executors.LocalExecutor(), "one")
    assert code == 0


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    made = Parser("python benchmarks/sweep_scale.py", "What a sweep of many cells costs that train nothing.")
    made.add_argument("--cells", type=int, default=10_000, help=f"how many, of {PROGRAMS} programs")
    made.add_argument("--folder", type=pathlib.Path, default=record.RESULTS, help="where the JSON is written")
    given, _ = parse_command_line(made, argv)
    check(given, {}, {"cells": MOST}, ())
    head = ("seconds", "processor", "MiB at most")
    print(NAME.format(f"{given.cells} cells"), *(f"{text:>11}" for text in head), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given.cells, pathlib.Path(folder))
    print(f"written: {record.write('sweep_scale', {'cells': given.cells, 'stages': rows}, given.folder)}")
    return 0


if __name__ == "__main__":
    run_entry(main)
