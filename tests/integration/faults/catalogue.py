"""Every fault that a soak plants, in the order in which seeds choose them."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable

from faults import damage, kills, machine, several
from faults.bench import Bench

Fault = Callable[[Bench, random.Random], int]  # plants itself once or several times, and returns how often

FAULTS: dict[str, Fault] = {
    "kill -9 at any instant": kills.at_any_instant,
    "kill -9 at any change of a file": kills.at_any_file,
    "kill -9 in a stage": kills.at_a_stage,
    "kill -9 of a sweep": kills.of_a_sweep,
    "kill -9 of parts of a sweep": kills.of_parts_of_a_sweep,
    "kill -9 of an evaluation": kills.of_an_evaluation,
    "kill -9 of one of two processes, or both": several.killed,
    "kill -9 of both, and both go on": several.killed_and_back,
    "one of two processes stands still": several.stalled,
    "the newest checkpoint damaged": damage.of_a_checkpoint,
    "several checkpoints damaged": damage.of_several_checkpoints,
    "another file damaged": damage.of_another_file,
    "a file of a finished run damaged": damage.of_a_finished_run,
    "compile cache damaged": damage.of_the_compile_cache,
    "full disk": machine.full_disk,
    "files of limited size": machine.file_limit,
    "read-only folder": machine.read_only,
    "files of another time": machine.file_times,
    "a clock that jumps": machine.clock_jumps,
    "several writers": machine.two_writers,
    "SIGTERM or SIGINT, once or twice": machine.signals,
    "a loss that is NaN": machine.not_finite,
    "a rate that overflows": machine.overflow,
}
KILLS = tuple(name for name in FAULTS if name.startswith("kill -9"))
SHARED = (several.killed, several.killed_and_back, several.stalled)
# Every second one kills a training, the others take turns: seed n plants CYCLE[n % len(CYCLE)].
OFTEN, OTHERS = tuple(FAULTS)[:3], tuple(FAULTS)[3:]
CYCLE = tuple(name for turn, other in enumerate(OTHERS) for name in (OFTEN[turn % len(OFTEN)], other))


class Benches:
    """The two benches of a folder: of runs in one process, and of runs that two share."""

    def __init__(self, root: pathlib.Path) -> None:
        self.alone, self.shared = Bench(root / "alone"), several.bench_of(root / "shared")

    def plant(self, name: str, seed: int) -> int:
        """Plant a fault as its seed says; how often. Raises Lost or Skipped."""
        plant = FAULTS[name]
        return plant(self.shared if plant in SHARED else self.alone, random.Random(f"{name} {seed}"))
