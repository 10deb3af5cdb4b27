"""The training loop. Its contract:

1. Nothing is written before the config is built, cross-checked and the run folder claimed.
2. Starting. The newest checkpoint whose digests hold is restored; if none was saved, state is drawn from the seed; if
   none of those saved can be used, the run is refused. Metrics and evaluations later than that step are cut, and the
   summary is that of the newest evaluation kept. A finished run is left alone: one command starts, resumes, ends it.
3. Between two dispatches of K steps, in this order: fetch metrics (where nothing is due, while the next one runs),
   save, evaluate, go on: a failing evaluation loses no step. State is saved only after its metrics were found finite,
   and copied to the host before the next dispatch takes it; it is written while training goes on, and there before the
   next one is written or the run ends.
4. The evaluation at initialisation runs after the first logged loss, or before one due earlier, on weights drawn anew.
5. A step's batch is a function of (seed, replica, step): a resumed run equals an unbroken one to the bit, in everything
   but wall-clock, for the same code, data, layout, versions, device kind and CPU threads. A checkpoint keeps those it
   was made with; where they differ from those that go on from it, the log says so.
6. SIGINT and SIGTERM end the run after the dispatch in flight, with a checkpoint and no evaluation but that of the last
   step, and give it its exit code whenever they arrive. A number that is not finite ends it without a checkpoint, and
   names the steps and the replica.
7. The step is compiled ahead of time, once, or again for fewer replicas at once where a device cannot hold it, or it is
   that of the run before, where `programs` has it. A run of 0 steps has none: its fresh state is saved and evaluated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from positionbias import hosts, runtime
from positionbias.arrays import Tree
from positionbias.config import schema
from positionbias.config.build import build
from positionbias.config.resolve import config_hash
from positionbias.evaluation.table import when
from positionbias.files import WriteError
from positionbias.training import auto
from positionbias.training.interval import NonFinite
from positionbias.training.kept import Found, Kept, Say
from positionbias.training.packing import Packed
from positionbias.training.program import Compiled, Program, State, fetch
from positionbias.training.reuse import Programs
from positionbias.training.run_folder import RunFolder
from positionbias.training.signals import StopSignal
from positionbias.training.writers import Progress

NON_FINITE = 3  # exit code


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` as in the manifest, the step reached, and the exit code of the entry.

    A signal gives its code, 128 + n, to a run of any status: it came before the run had ended.
    """

    status: str
    step: int
    code: int
    message: str = ""


def train(
    config: schema.Config,
    workdir: pathlib.Path,
    command: list[str],
    say: Say,
    stop_after: int | None = None,
    programs: Programs | None = None,
) -> Outcome:
    """Train `config` in `workdir` until its last step, a signal, or `stop_after` (which leaves schedules alone).

    `say` prints one line of the log; the progress line goes to standard output. `programs` has those of the run before,
    and is given those of this one. Raises ConfigError for a config or folder that cannot be used, FolderInUse if
    another process owns the folder, FileError, MemoryError or GoneError, which the manifest then tells, where disk or
    memory has no room, a file cannot be read or another process ended.
    """
    experiment = build(config)
    chosen = auto.resolve(experiment, jax.default_backend(), len(jax.devices()))
    claimed: list[RunFolder] = []  # none in a process that writes nothing

    def claim() -> dict[str, Any]:
        claimed.append(RunFolder.claim(workdir, schema.to_dict(config), config_hash(config), command))
        return claimed[0].previous

    previous = hosts.by_first(claim)
    with contextlib.ExitStack() as until, StopSignal() as stop:
        folder = until.enter_context(claimed[0]) if claimed else None
        if previous.get("status") == "finished":
            say(f"{workdir.absolute()} holds this run, finished at step {previous['step']}")
            return Outcome("finished", previous["step"], 0)
        kept, program = Kept(folder, experiment, say), Program(experiment, chosen)
        progress = Progress(sys.stdout if folder else io.StringIO(), config.train.steps)
        return Run(program, kept, say, progress, programs or Programs()).ended(stop, stop_after)


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Of what XLA raises, a lack of memory becomes MemoryError, and another process that ended GoneError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the second where it fails as it is handed over
        text = str(error).partition("\n")[0].rstrip(".")
        if not any(words in text for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
            hosts.refuse_gone(text)
            raise
        raise MemoryError(f"memory ran out, a smaller model or train.microbatch needs less: {text}.") from None


class Run:
    """One run in progress, or several whose replicas are in one program (`training/together.py`)."""

    def __init__(self, program: Program, kept: Kept, say: Say, progress: Progress, programs: Programs) -> None:
        self.program, self.kept, self.say, self.progress = program, kept, say, progress
        self.chosen, self.experiment, self.config = program.auto, program.experiment, program.experiment.config
        self.programs, self.interval = programs, kept.interval()
        self.step, self.seconds, self.clock = 0, 0.0, time.perf_counter()

    # -------------------------------------------------------------------------------------------------------- stages

    def ended(self, stop: StopSignal, stop_after: int | None) -> Outcome:
        """Train, and tell how it ended; everything is closed then."""
        steps = self.config.train.steps
        try:
            with device_errors():
                outcome = self.go(stop, steps if stop_after is None else min(stop_after, steps))
        except NonFinite as error:
            with contextlib.suppress(WriteError):
                self.kept.update(status="failed", message=str(error))
            outcome = Outcome("failed", self.step, NON_FINITE, str(error))
        finally:
            self.progress.close()
            self.kept.close()
        if stop.number is None:
            return outcome
        message = outcome.message or f"{outcome.status} before {stop.name} could stop it"
        return dataclasses.replace(outcome, code=128 + stop.number, message=message)

    def go(self, stop: StopSignal, last: int) -> Outcome:
        """Start or resume, and train up to step `last`."""
        found = self.kept.restored(self.program.shape())
        self._announce()
        with runtime.no_garbage():
            compiled = self.programs.compiled(self.program, self.say)
        self.program, self.chosen = compiled.program, compiled.program.auto
        self.kept.update(status="running", auto=self.chosen.describe(), data=self.experiment.data, message="")
        state = self._start(compiled, found)
        self.evaluator = self.programs.evaluator(self.program)
        self._train(compiled, state, stop, last)
        self.kept.settle()
        steps = self.config.train.steps
        outcome = Outcome("finished" if self.step == steps else "stopped", self.step, 0)
        if stop.number is not None and self.step < steps:
            outcome = dataclasses.replace(outcome, message=f"stopped by {stop.name}")
        self.kept.update(status=outcome.status, step=self.step, seconds=self.seconds, message=outcome.message)
        return outcome

    def _announce(self) -> None:
        found = self.chosen.describe()
        abstract = jax.tree.leaves(self.experiment.abstract)
        count = sum(x.size for x in abstract)
        self.say(f"{count:,} parameters a replica; auto: " + ", ".join(f"{k} {v}" for k, v in found.items()))
        if hosts.several():
            print(hosts.whose(self.chosen.layout), flush=True)
        for line in [*self.experiment.narrowed, *self.experiment.idle]:
            self.say(line)

    def _start(self, compiled: Compiled, found: Found | None) -> Packed:
        if found is None:
            state = compiled.fresh()
        else:
            self.step, restored, meta = found
            self.say(f"resumed at step {self.step} of {self.config.train.steps}")
            self.seconds, self.interval = meta["seconds"], self.kept.interval(meta["interval"])
            state = compiled.pack(restored)
        self.kept.begin(found)
        return state

    def _train(self, compiled: Compiled, state: Packed, stop: StopSignal, last: int) -> None:
        size, pending = self.chosen.steps_per_dispatch, None
        logged = False  # the first loss is shown as soon as it is there, not a dispatch late
        self._resume()
        while True:
            due = self._due()
            ends = stop.number is not None or self.step >= last
            if pending is not None and (due or ends or not logged):
                logged = self._take(pending, self.step, stop) or logged
                pending = None
            if pending is None:
                stopped = stop.number is not None  # anew: the dispatch just fetched may have taken long
                ends = ends or stopped
                self._pause()
                if due.get("save") or (ends and self.step > 0):
                    self._save(compiled.unpack(state))
                if not stopped or self.step == self.config.train.steps:
                    self._evaluations(compiled, state, due.get("evaluate", False), logged or ends)
                self._resume()
            if ends:
                return
            if pending is None and stop.number is not None:
                continue  # the signal came during an evaluation, when no dispatch was in flight
            state, metrics = compiled.advance(state, self.step)
            if pending is not None:
                self._take(pending, self.step, stop)  # while the device works on the next dispatch
            self.step += size
            pending = metrics

    # ------------------------------------------------------------------------------------------------------ boundaries

    def _due(self) -> dict[str, bool]:
        """What falls on this step; empty if nothing does."""
        step, steps = self.step, self.config.train.steps
        save, evaluate = self.config.checkpoint.every, self.config.evaluation.every
        due = {
            "save": step == steps or (step > 0 and save is not None and step % save == 0),
            "evaluate": step == steps or (step > 0 and evaluate is not None and step % evaluate == 0),
        }
        return {name: True for name, holds in due.items() if holds}

    def _evaluations(self, compiled: Compiled, state: Packed, due: bool, initial: bool) -> None:
        """The evaluations that are due here and not there yet; the one at initialisation comes before any other."""
        due = due and self.step not in self.kept.evaluated
        if (initial or due) and 0 not in self.kept.evaluated:
            self._evaluate(compiled.unpack(compiled.fresh()), 0)
        if due and self.step > 0:
            self._evaluate(compiled.unpack(state), self.step)

    def _take(self, metrics: Tree, ended: int, stop: StopSignal) -> bool:
        """Fetch the metrics of the dispatch that ended at step `ended`; whether a line was logged."""
        self.interval.add(fetch(metrics), ended)
        stop.agree()
        now = time.perf_counter()
        self.seconds += now - self.clock
        self.clock = now
        logs = ended % self.config.train.log_every == 0 or ended == self.config.train.steps
        if logs:
            line = {"step": ended, "seconds": round(self.seconds, 3), **self.interval.close()}
            self.kept.log(line)
            self.progress.update(ended, line["loss"], line["accuracy"])
        return logs

    def _save(self, state: State) -> None:
        if self.step not in self.kept.whole:
            meta = {"seconds": self.seconds, "interval": self.interval.saved()}
            self.kept.save(self.step, hosts.on_host(state), meta)

    def _evaluate(self, state: State, step: int) -> None:
        # Told before: the first one of each program compiles, and there is no progress to show before.
        self.say(f"evaluating the models {when({'steps': step, 'of': self.config.train.steps})}")
        with self.progress.evaluating() as line:
            rows = self.evaluator.rows({"params": state["params"], "frozen": state["frozen"]}, line.update)
        self.kept.rows(step, rows)

    def _pause(self) -> None:
        self.progress.pause()
        self.seconds += time.perf_counter() - self.clock

    def _resume(self) -> None:
        self.progress.resume()
        self.clock = time.perf_counter()
