"""Kill -9, at any instant and at chosen ones, of a training, a sweep and an evaluation."""

from __future__ import annotations

import pathlib
import random
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any

from faults.bench import CELLS, LOG, REPORT, Bench, Ended, ending, free, need, status
from positionbias.sweeping import ledger

MOST_KILLS = 12  # of one run, which is then left to end
STAGES = (
    *("claim", "restore", "compile", "cut", "step", "save", "prune", "settle"),
    *("evaluation", "rows", "last word", "report"),
)
LONG = {"compile": 1.0, "save": 0.05, "settle": 0.05, "evaluation": 0.3, "report": 0.5}  # seconds of stages
Plant = tuple[dict[str, Any] | None, float | None]  # what is planted in a process, or after how much work it is killed


def at_any_instant(bench: Bench, draw: random.Random) -> int:
    """Of a training, uniformly over the whole life of an undisturbed one."""
    life = bench.life
    return until_it_ends(bench, bench.fresh(), ((None, draw.uniform(0, life)) for _ in range(MOST_KILLS)))


def at_any_file(bench: Bench, draw: random.Random) -> int:
    """Of a training, just before any change that Python makes to a file or folder of the run."""
    run, most = bench.fresh(), bench.once("changes", lambda: _changes(bench))
    plants = ({"fault": "at_file", "folder": str(run), "nth": draw.randint(1, most)} for _ in range(MOST_KILLS))
    return until_it_ends(bench, run, ((planted, None) for planted in plants))


def at_a_stage(bench: Bench, draw: random.Random) -> int:
    """Of a training, in a chosen stage: start, compiling, step, save, evaluation, the last word and the report."""
    often = {"step": bench.steps // LOG, "save": bench.steps // bench.save, "prune": bench.steps // bench.save}
    often |= {"settle": bench.steps // bench.save + 1, "evaluation": 3, "rows": 3}

    def plant() -> dict[str, Any]:
        stage = draw.choice(STAGES)
        nth, delay = draw.randint(1, often.get(stage, 1)), draw.uniform(0, LONG.get(stage, 0.002))
        return {"fault": "in_stage", "stage": stage, "nth": nth, "delay": delay}

    return until_it_ends(bench, bench.fresh(), ((plant(), None) for _ in range(MOST_KILLS)))


def until_it_ends(bench: Bench, run: pathlib.Path, plants: Iterable[Plant]) -> int:
    """Start the same run again and again, each time killed as planted, until it has ended; the number of kills."""
    bench.undisturbed  # noqa: B018  (made first)
    before, kills = set[int](), 0
    for planted, after in plants:
        process = bench.start(run, planted=planted)
        ended = bench.killed(process, after) if after is not None else _dead(bench, process)
        if ended is not None:
            need(ended.code == 0, "a run that was killed before does not go on", ended)
            need(ended.err == "", "a run that was killed before says more than others do", ended)
            break
        kills += 1
        before = bench.truth(run, before) if run.exists() else set()
    else:
        bench.finish(run, before)
    bench.same(run)
    shutil.rmtree(run)
    return kills


def _dead(bench: Bench, process: subprocess.Popen) -> Ended | None:
    """How a process ended, None if it killed itself."""
    ended = bench.ended(process)
    return None if ended.code == -9 else ended


def _changes(bench: Bench) -> int:
    """How many changes a whole run makes to its files."""
    run, told = bench.fresh(), bench.root / "changes.txt"
    planted = {"fault": "at_file", "folder": str(run), "nth": -1, "told": str(told)}
    ended = bench.run(run, planted=planted)
    need(ended.code == 0, "a run that nothing happens to fails", ended)
    bench.same(run)
    shutil.rmtree(run)
    return len(told.read_text().splitlines())


# ------------------------------------------------------------------------------------------------- sweeps, evaluations


def of_a_sweep(bench: Bench, draw: random.Random) -> int:
    """Of a sweep, uniformly over its life: finished cells are not run again, and the same command ends all of them."""
    reference, life = bench.once("sweep", lambda: _swept(bench))
    run, kills, begun = bench.fresh(), 0, dict[str, int]()  # how often each cell had begun when it was finished
    while kills < MOST_KILLS:
        ended = bench.killed(bench.start(run, entry="sweep"), draw.uniform(0, life))
        if ended is not None:
            break
        kills += 1
        need(not run.exists() or free(run), "the lock of a killed sweep is held")
        for cell in CELLS:
            if (run / "cells" / cell).exists() and status(run / "cells" / cell) == "finished":
                _cell(bench, run, reference, cell)
                begun.setdefault(cell, _begun(run, cell))
            else:
                need(cell not in begun, f"the cell {cell} was finished and no longer is")
    else:
        ended = bench.run(run, entry="sweep")
    need(ended.code == 0, "a sweep that was killed does not go on", ended)
    _all_cells(bench, run, reference)
    for cell, before in begun.items():
        need(_begun(run, cell) == before, f"the cell {cell} was finished and ran again")
    shutil.rmtree(run)
    return kills


def of_parts_of_a_sweep(bench: Bench, draw: random.Random) -> int:
    """Of one of two processes that share a sweep, or of both: the other ends its part, and a whole sweep the rest."""
    reference, life = bench.once("sweep", lambda: _swept(bench))
    run, which = bench.fresh(), draw.choice(((0,), (1,), (0, 1)))
    parts = [bench.start(run, "--cells", f"{index}/2", entry="sweep") for index in (1, 2)]
    with ending(*parts):
        bench.reach(parts[which[0]], draw.uniform(0, 0.7 * life))
        for index in which:
            parts[index].kill()
        for index in {0, 1} - set(which):
            ended = bench.ended(parts[index])
            need(ended.code == 0, "a part of a sweep does not end when another is killed", ended)
    ended = bench.run(run, entry="sweep")
    need(ended.code == 0, "a sweep whose parts were killed does not go on", ended)
    _all_cells(bench, run, reference)
    shutil.rmtree(run)
    return sum(part.returncode == -9 for part in parts)


def _cell(bench: Bench, run: pathlib.Path, reference: pathlib.Path, cell: str) -> None:
    # A sweep that is killed after a cell has finished does not come back to it for its report.
    home = pathlib.Path("cells", cell)
    bench.same(run / home, reference / home, steps=CELLS[cell], without=REPORT)


def _all_cells(bench: Bench, run: pathlib.Path, reference: pathlib.Path) -> None:
    for cell in CELLS:
        _cell(bench, run, reference, cell)
        ends = [line for line in ledger.lines(run) if (line["cell"], line["status"]) == (cell, "finished")]
        need(len(ends) <= 1, f"the ledger says {len(ends)} times that the cell {cell} is finished")
    need((run / "report.html").exists(), "the sweep has no report")


def _begun(run: pathlib.Path, cell: str) -> int:
    return sum((line["cell"], line["status"]) == (cell, "running") for line in ledger.lines(run))


def _swept(bench: Bench) -> tuple[pathlib.Path, float]:
    """A sweep that nothing happened to, and the seconds of processors that it takes where all is compiled."""
    first, second = (bench.root / name for name in ("first sweep", "sweep"))
    bench.spent(lambda: bench.run(first, entry="sweep"))
    return second, bench.spent(lambda: bench.run(second, entry="sweep"))


def of_an_evaluation(bench: Bench, draw: random.Random) -> int:
    """Of an evaluation of a finished run: the run stays as it is, and the same command ends like one undisturbed."""
    reference, life = bench.once("evaluation", lambda: _evaluated(bench))
    run, kills = bench.finished(), 0
    while kills < MOST_KILLS:
        ended = bench.killed(_evaluating(bench, run), draw.uniform(0, life))
        if ended is not None:
            break
        kills += 1
        need(free(run), "the lock of a killed evaluation is held")
        need(status(run) == "finished", "an evaluation that was killed has cost a run its end")
    else:
        ended = bench.ended(_evaluating(bench, run))
    need(ended.code == 0, "an evaluation that was killed does not end", ended)
    bench.same(run, reference)
    for path in (reference / "evals").glob("step*"):
        need(path.read_bytes() == (run / "evals" / path.name).read_bytes(), f"{path.name} is another")
    shutil.rmtree(run)
    return kills


def _evaluating(bench: Bench, run: pathlib.Path) -> subprocess.Popen:
    return bench.start(run, "--items", "40", entry="evaluate", config=False)


def _evaluated(bench: Bench) -> tuple[pathlib.Path, float]:
    """A run that was evaluated again, and the seconds of processors that takes where all is compiled."""
    run = bench.finished()
    bench.spent(lambda: bench.ended(_evaluating(bench, run)))
    return run, bench.spent(lambda: bench.ended(_evaluating(bench, run)))
