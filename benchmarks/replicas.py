"""Replicas as one program beside as many runs, each a program of one replica called in turn.

    python benchmarks/replicas.py [--minutes 9] [--replicas 1 4 16 64] [--config configs/associative_recall/quick.py]

R runs of seeds 0 to R - 1 are held against one program whose R replicas have these seeds, in both layouts: `loop`, one
replica after another, and `vmap`, side by side. `auto` is the one that the package chooses here. What it costs to start
R runs is left out, in their favour: they share one compiled program in one process. Before anything is timed the losses
of all replicas have to be those of the runs.

`ratio` is the time of the runs over that of the one program, above 1 where this is faster; the goal for the layout of
`auto` on a CPU is 1. Beside it stands the memory that XLA says the step takes (arguments and temporary arrays). Where a
device has less, a run has fewer replicas at once (`training/fitting.py`), which is not measured here.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import numpy as np
import prepare
import record
import timed
from given import check, recorded

from positionbias.config import cli
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.training.program import Compiled, Program, fetch

RUNS, MODE = "runs", "train"
FORMS = ("loop", "vmap")
NAMES = {"forms": FORMS}
MOST = {"replicas": 4096, "rounds": 1000, "steps": 1000}
CLOSE = 1e-4  # relative difference of losses in float32
GOAL = 1.0  # on a CPU, of the layout of `auto`


class Turns:
    """Compiled programs in training, called in turn."""

    def __init__(self, compiled: list[Compiled]) -> None:
        self._compiled, self._step = compiled, 0
        self._size = compiled[0].program.auto.steps_per_dispatch
        self._states = [one.fresh() for one in compiled]
        self.memory = compiled[0].bytes

    def call(self) -> list[jax.Array]:
        """The next K steps of each; their metrics."""
        made = []
        for i, one in enumerate(self._compiled):
            self._states[i], metrics = one.advance(self._states[i], self._step)
            made.append(metrics)
        self._step += self._size
        return made

    def wait(self, made: list[jax.Array]) -> np.ndarray:
        """The losses [R, K], once they are there."""
        return np.concatenate([fetch(metrics)["loss"] for metrics in made])


def program_of(given: argparse.Namespace, seeds: list[int], form: str) -> Program:
    """A program whose replicas have these seeds."""
    steps = {"train.log_every": given.steps, "train.steps": 1000 * given.steps, "train.steps_per_dispatch": given.steps}
    steps |= {"optimizer.warmup_steps": 0}
    more = {"train.replicas": len(seeds), "train.vary": {"seed": seeds}, "train.replica_layout": form}
    return prepare.program(cli.load_config(given.config, {**steps, **more}))


def measure(given: argparse.Namespace, replicas: int, alone: Compiled, over: Any) -> dict[str, Any]:
    """The runs, and the program in both layouts."""
    seeds = list(range(replicas))
    chosen = program_of(given, seeds, "auto").auto.layout.form
    runs = Turns([alone.of(program_of(given, [seed], "auto")) for seed in seeds])
    wanted = runs.wait(runs.call())

    def make(name: str, mode: str) -> Turns:
        if name == RUNS:
            return runs
        made = Turns([program_of(given, seeds, name).compile()])
        found = made.wait(made.call())
        if not (apart := float(np.max(np.abs(found - wanted) / wanted))) <= CLOSE:
            raise ValueError(f"losses differ from those of the runs by {apart:.2g}, more than {CLOSE:.0e}")
        return made

    programs, said = timed.prepared([RUNS, *given.forms], [MODE], make, (), over)
    timed.measure(programs, said, given.rounds, RUNS, over)
    rows = []
    for (name, _), found in said.items():
        found = timed.each(found, given.steps * replicas)
        if "ratio" in found:  # of the runs to the program
            least, most = found["spread"]["most"], found["spread"]["least"]
            found["spread"] = {"least": 1 / least, "median": 1 / found["spread"]["median"], "most": 1 / most}
            found |= {"ratio": 1 / found["ratio"], "processor_ratio": 1 / found["processor_ratio"]}
        rows.append({"impl": name, "auto": name == chosen, **found})
    goal = GOAL if jax.default_backend() == "cpu" else None
    return {"replicas": replicas, "auto": chosen, "goal": goal, "rows": rows}


def show(row: dict[str, Any]) -> str:
    """The lines of a table."""
    lines = []
    for one in row["rows"]:
        line = f"{row['replicas']:>4}  {one['impl'] + (' (auto)' if one['auto'] else ''):<14}"
        if "ratio" not in one:
            lines.append(f"{line}{one.get('skipped') or one.get('error')}"[:150].splitlines()[0])
            continue
        times = f"{one['milliseconds']:10.3f}{one['processor']:11.3f}{one['ratio']:8.2f}{one['processor_ratio']:11.2f}"
        spread, memory = one["spread"], one["memory"] / 2**20
        lines.append(f"{line}{times}   {spread['least']:5.2f} to {spread['most']:4.2f}{memory:10.1f}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print and record; returns the exit code, 1 if a layout computed something else."""
    given, _ = parse_command_line(_parser(), argv)
    check(given, NAMES, MOST, ("minutes",))
    over = timed.ends(given.minutes)
    alone = program_of(given, [0], "auto").compile()
    rows: list[dict[str, Any]] = []
    left: list[int] = []
    print(f"   R  {'as':<14}{'ms':>10}{'processor':>11}{'ratio':>8}{'processor':>11}   {'rounds':<13}", end="")
    print(f"{'MiB':>10}   (a step and replica)")
    for replicas in given.replicas:
        if over():
            left.append(replicas)
            continue
        rows.append(measure(given, replicas, alone, over))
        print(show(rows[-1]), flush=True)
    path = record.write(
        f"replicas_{jax.default_backend()}",
        {"given": recorded(given), "programs": rows, "left_out": left},
        given.folder,
    )
    print("left out:", ", ".join(map(str, left)) or "nothing")
    print(f"written: {path}")
    return int(any("error" in one for row in rows for one in row["rows"]))


def _parser() -> Parser:
    made = Parser("python benchmarks/replicas.py", "Replicas as one program beside as many runs.")
    made.add_argument("--minutes", type=float, default=9.0, help="after which nothing more is begun")
    made.add_argument("--config", default="configs/associative_recall/quick.py", help="whose model and task")
    made.add_argument("--replicas", nargs="+", type=int, default=[1, 4, 16, 64])
    made.add_argument("--forms", nargs="+", default=list(FORMS), help=", ".join(FORMS))
    made.add_argument("--steps", type=int, default=4, help="in a call")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--folder", type=pathlib.Path, default=record.RESULTS, help="where the JSON is written")
    return made


if __name__ == "__main__":
    run_entry(main)
