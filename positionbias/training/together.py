"""Runs whose replicas are side by side in one program, each of which has a folder as if it had run alone.

Their configs are of one program (`config/sharing.py`), but for the number of replicas. A run of which a number is not
finite ends alone, and the others go on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from positionbias import hosts, runtime
from positionbias.arrays import Tree
from positionbias.config import schema
from positionbias.config.build import build
from positionbias.config.resolve import config_hash
from positionbias.evaluation.rows import of_replicas
from positionbias.files import WriteError
from positionbias.spec import ConfigError
from positionbias.training import auto
from positionbias.training.interval import Interval, NonFinite
from positionbias.training.kept import Found, Kept, Say
from positionbias.training.loop import NON_FINITE, Outcome, Run, device_errors
from positionbias.training.program import Program
from positionbias.training.reuse import Programs
from positionbias.training.run_folder import RunFolder
from positionbias.training.signals import StopSignal
from positionbias.training.writers import METRICS, Progress

LEAST = 2  # replicas that a device has of each run: one alone is computed in another way, with other bits


def side_by_side(config: schema.Config) -> bool:
    """Whether this machine trains replicas side by side, so that those of other runs may be beside them."""
    chosen = auto.layout(config, jax.default_backend(), len(jax.devices()))
    return chosen.form == "vmap" and config.train.replicas // chosen.replica >= LEAST and not hosts.several()


def train_together(
    configs: Sequence[schema.Config],
    workdirs: Sequence[pathlib.Path],
    command: list[str],
    say: Say,
    stop_after: int | None = None,
    programs: Programs | None = None,
) -> list[Outcome]:
    """`loop.train` of several configs at once, none of them finished; how each ended.

    `programs` has those of the replicas trained before, and is given those of these.

    Raises what `train` does, of any of them, and ConfigError where they stand at different steps: then each is to be
    trained alone, and goes on from what is saved of it; MemoryError where fewer are to be trained at once. An error
    behind a SIGINT or SIGTERM gives way to KeyboardInterrupt or SystemExit.
    """
    experiments = [build(config) for config in configs]
    alone = auto.resolve(experiments[0], jax.default_backend(), len(jax.devices()))
    chosen = dataclasses.replace(alone, together=sum(config.train.replicas for config in configs))
    with contextlib.ExitStack() as until, StopSignal() as stop:
        each, aside = list[Kept](), concurrent.futures.ThreadPoolExecutor(1, "save")
        for experiment, workdir in zip(experiments, workdirs, strict=True):
            told = schema.to_dict(experiment.config), config_hash(experiment.config), command
            folder = until.enter_context(RunFolder.claim(workdir, *told))
            if folder.previous.get("status") == "finished":
                raise ConfigError(f"workdir: {str(workdir)!r} holds a finished run; allowed: runs that are to go on.")
            each.append(Kept(folder, experiment, say, aside))
        kept, program, programs = (
            Together(each, say),
            Program(experiments[0], chosen, tuple(configs)),
            programs or Programs(),
        )
        run = Run(program, kept, say, Progress(sys.stdout, configs[0].train.steps), programs)
        try:
            with runtime.no_garbage(), device_errors():
                programs.compiled(program, say)
            outcome = run.ended(stop, stop_after)
        except Exception:
            if stop.number is None:
                raise
            # Nobody else knows of the signal: who got the error would begin other runs.
            raise (KeyboardInterrupt if stop.number == signal.SIGINT else SystemExit(128 + stop.number)) from None
        return [kept.failed.get(number, outcome) for number in range(len(configs))]


class Together(Kept):
    """The files of several runs of R replicas each: what one `Kept` is told, all are told that have not failed."""

    def __init__(self, each: Sequence[Kept], say: Say) -> None:
        self.each, self.say = each, say
        self.size = each[0].experiment.config.train.replicas
        self.failed: dict[int, Outcome] = {}

    @property
    def going(self) -> list[int]:
        """The numbers of those that have not failed."""
        return [number for number in range(len(self.each)) if number not in self.failed]

    def own(self, number: int) -> slice:
        """Where the replicas of a run are among all."""
        return slice(number * self.size, (number + 1) * self.size)

    @property
    def whole(self) -> set[int]:  # type: ignore[override]
        """Steps that all have a checkpoint of."""
        return set.intersection(*(self.each[number].whole for number in self.going))

    @property
    def evaluated(self) -> set[int]:  # type: ignore[override]
        """Steps that all have rows of."""
        return set.intersection(*(self.each[number].evaluated for number in self.going))

    def update(self, **fields: Any) -> None:
        for number in self.going:
            self.each[number].update(**fields)

    def close(self) -> None:
        for one in self.each:
            one.close()

    def interval(self, saved: Any = None) -> Interval:
        return Intervals(self, saved)

    def fail(self, number: int, error: NonFinite, step: int) -> None:
        """End one of them, whose step is the last one before; raises the error if none is left."""
        if len(self.going) == 1:
            raise error
        with contextlib.suppress(WriteError):
            self.each[number].update(status="failed", message=str(error))
        self.failed[number] = Outcome("failed", step, NON_FINITE, str(error))

    # -------------------------------------------------------------------------------------------------------- starting

    def restored(self, like: Tree) -> Found | None:
        shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.size, *x.shape[1:]), x.dtype), like)
        self.found = [one.restored(shape) for one in self.each]
        found = [one for one in self.found if one is not None]
        if not found:
            return None
        if len({one[0] for one in found}) > 1 or len(found) < len(self.each):
            raise ConfigError("workdir: these runs stand at different steps; allowed: to go on with each alone.")
        state = jax.tree.map(lambda *parts: np.concatenate(parts), *(one[1] for one in found))
        metas = [one[2] for one in found]
        return found[0][0], state, {"seconds": metas[0]["seconds"], "interval": [meta["interval"] for meta in metas]}

    def begin(self, found: Found | None) -> None:
        for one, own in zip(self.each, self.found, strict=True):
            one.begin(own)

    # --------------------------------------------------------------------------------------------------------- writing

    def log(self, line: dict[str, Any]) -> None:
        for place, number in enumerate(self.going):
            own = {name: line[name][place * self.size : (place + 1) * self.size] for name in METRICS}
            self.each[number].log({**line, **own})

    def save(self, step: int, state: Tree, meta: dict[str, Any]) -> None:
        for place, number in enumerate(self.going):
            at = self.own(number)
            part = jax.tree.map(lambda x, at=at: x[at], state)
            self.each[number].save(step, part, {**meta, "interval": meta["interval"][place]})

    def settle(self) -> None:
        for one in self.each:
            one.settle()

    def rows(self, step: int, rows: dict[str, Any]) -> None:
        for number in self.going:
            at = self.own(number)
            self.each[number].rows(step, of_replicas(rows, range(at.start, at.stop)))


class Intervals(Interval):
    """The interval of every run; one whose metrics are not finite fails."""

    def __init__(self, kept: Together, saved: Any) -> None:
        self.kept = kept
        self.each = [Interval(None if saved is None else saved[number]) for number in range(len(kept.each))]

    def add(self, metrics: Tree, stop: int) -> None:
        for number in self.kept.going:
            try:
                self.each[number].add({name: value[self.kept.own(number)] for name, value in metrics.items()}, stop)
            except NonFinite as error:
                self.kept.fail(number, error, stop)

    def saved(self) -> Any:
        """What a checkpoint keeps of each."""
        return [self.each[number].saved() for number in self.kept.going]

    def close(self) -> dict[str, Any]:
        """The means of all replicas that are left, by name, in order."""
        parts = [self.each[number].close() for number in self.kept.going]
        return {name: [one for part in parts for one in part[name]] for name in parts[0]}
