"""The training loop. Its contract:

1. Nothing is written before the config is built, cross-checked and the run folder claimed.
2. Starting. The newest checkpoint whose digests hold is restored; if none was saved, state is drawn from the seed; if
   none of those saved can be used, the run is refused. Metrics and evaluations later than that step are cut, and the
   summary is that of the newest evaluation kept. A finished run is left alone: one command starts, resumes, ends it.
3. Between two dispatches of K steps, in this order: fetch metrics (where nothing is due, while the next one runs),
   save, evaluate, go on: a failing evaluation loses no step. State is saved only after its metrics were found finite.
4. The evaluation at initialisation runs after the first logged loss, or before one due earlier, on weights drawn anew.
5. A step's batch is a function of (seed, replica, step): a resumed run equals an unbroken one to the bit, in everything
   but wall-clock, for the same code, data, layout, versions, device kind and CPU threads. A checkpoint keeps those it
   was made with; where they differ from those that go on from it, the log says so.
6. SIGINT and SIGTERM end the run after the dispatch in flight, with a checkpoint and no evaluation but that of the last
   step, and give it its exit code whenever they arrive. A number that is not finite ends it without a checkpoint, and
   names the steps and the replica.
7. The step is compiled once, ahead of time. A run of 0 steps has none: its fresh state is saved and evaluated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from positionbias import runtime
from positionbias.arrays import Tree
from positionbias.config import schema
from positionbias.config.build import Experiment, build
from positionbias.config.resolve import config_hash
from positionbias.evaluation.by_position import Evaluator, theory_of
from positionbias.evaluation.rows import read_rows, write_rows
from positionbias.evaluation.summary import summarise
from positionbias.files import WriteError, write_json
from positionbias.spec import ConfigError
from positionbias.training import auto, checkpoint
from positionbias.training.interval import Interval, NonFinite
from positionbias.training.packing import Packed
from positionbias.training.program import Compiled, Program, State, fetch
from positionbias.training.run_folder import RunFolder
from positionbias.training.signals import StopSignal
from positionbias.training.writers import MetricsWriter, Progress

Say = Callable[[str], None]
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
    config: schema.Config, workdir: pathlib.Path, command: list[str], say: Say, stop_after: int | None = None
) -> Outcome:
    """Train `config` in `workdir` until its last step, a signal, or `stop_after` (which leaves schedules alone).

    `say` prints one line of the log; the progress line goes to standard output. Raises ConfigError for a config or
    folder that cannot be used, FolderInUse if another process owns the folder, FileError or MemoryError, which the
    manifest then tells, where disk or memory has no room or a file cannot be read.
    """
    experiment = build(config)
    chosen = auto.resolve(experiment, jax.default_backend(), len(jax.devices()))
    with RunFolder.claim(workdir, schema.to_dict(config), config_hash(config), command) as folder, StopSignal() as stop:
        if folder.previous.get("status") == "finished":
            say(f"{folder.path} holds this run, finished at step {folder.previous['step']}")
            return Outcome("finished", folder.previous["step"], 0)
        run = _Run(experiment, chosen, folder, say, Progress(sys.stdout, config.train.steps))
        try:
            outcome = run.go(stop, config.train.steps if stop_after is None else min(stop_after, config.train.steps))
        except NonFinite as error:
            with contextlib.suppress(WriteError):
                folder.update(status="failed", message=str(error))
            outcome = Outcome("failed", run.step, NON_FINITE, str(error))
        except jax.errors.JaxRuntimeError as error:
            text = str(error).partition("\n")[0].rstrip(".")
            if not any(words in text for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
                raise
            raise MemoryError(f"memory ran out, a smaller model or train.microbatch needs less: {text}.") from None
        finally:
            run.progress.close()
            run.metrics.close()
        if stop.number is None:
            return outcome
        message = outcome.message or f"{outcome.status} before {stop.name} could stop it"
        return dataclasses.replace(outcome, code=128 + stop.number, message=message)


class _Run:
    """One run in progress."""

    def __init__(
        self, experiment: Experiment, chosen: auto.Auto, folder: RunFolder, say: Say, progress: Progress
    ) -> None:
        self.experiment, self.config, self.folder, self.say = experiment, experiment.config, folder, say
        self.progress, self.chosen = progress, chosen
        self.step, self.seconds, self.clock = 0, 0.0, time.perf_counter()
        self.checkpoints = folder.path / "checkpoints"
        self.whole: set[int] = set()  # steps whose checkpoint was read or written here
        self.evaluated: set[int] = set()  # steps whose rows are there
        self.bits_guaranteed = True
        self.metrics, self.interval = MetricsWriter(folder.path / "metrics.jsonl"), Interval()
        self.told: dict[str, Any] = {"theory": theory_of(experiment), "state_size": experiment.state_size}

    # -------------------------------------------------------------------------------------------------------- stages

    def go(self, stop: StopSignal, last: int) -> Outcome:
        """Start or resume, and train up to step `last`."""
        program = Program(self.experiment, self.chosen)
        found = self._restored(program.shape())
        with runtime.no_garbage():
            compiled = program.compile()
        self._announce()
        state = self._start(compiled, found)
        self.evaluator = Evaluator(self.experiment, self.chosen.layout, program.keys())
        self._train(compiled, state, stop, last)
        steps = self.config.train.steps
        outcome = Outcome("finished" if self.step == steps else "stopped", self.step, 0)
        if stop.number is not None and self.step < steps:
            outcome = dataclasses.replace(outcome, message=f"stopped by {stop.name}")
        self.folder.update(status=outcome.status, step=self.step, seconds=self.seconds, message=outcome.message)
        return outcome

    def _announce(self) -> None:
        found = self.chosen.describe()
        abstract = jax.tree.leaves(self.experiment.abstract)
        count = sum(x.size for x in abstract)
        self.say(f"{count:,} parameters a replica; auto: " + ", ".join(f"{k} {v}" for k, v in found.items()))
        for line in [*self.experiment.narrowed, *self.experiment.idle]:
            self.say(line)
        self.folder.update(status="running", auto=found, data=self.experiment.data, message="")

    def _restored(self, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
        """The newest whole checkpoint, None before the first; ConfigError rather than losing what others hold."""
        try:
            return checkpoint.restore_latest(self.checkpoints, self.say, like)
        except checkpoint.CheckpointError as error:
            told, where = str(error).rstrip("."), str(self.checkpoints)
            raise ConfigError(f"workdir: {told}; allowed in {where!r}: what was saved, or nothing.") from None

    def _start(self, compiled: Compiled, found: tuple[int, Tree, dict[str, Any]] | None) -> Packed:
        if found is None:
            state = compiled.fresh()
        else:
            self.step, restored, meta = found
            self.say(f"resumed at step {self.step} of {self.config.train.steps}")
            self.seconds, self.interval = meta["seconds"], Interval(meta["interval"])
            self.whole.add(self.step)
            self._compare(meta)
            state = compiled.pack(restored)
        self.metrics.cut_back(self.step)
        self._cut_evaluations(-1 if found is None else self.step)
        self.folder.update(step=self.step, seconds=self.seconds, bits_guaranteed=self.bits_guaranteed)
        return state

    def _compare(self, meta: dict[str, Any]) -> None:
        """Say what is no longer as it was when the restored checkpoint was made."""
        before, now = meta["circumstances"], self.folder.circumstances()
        changed = []
        if before["commit"] != now["commit"]:
            changed.append(f"commit changed from {before['commit']} to {now['commit']}")
        if before["dirty"] or now["dirty"]:
            changed.append("the code has changes that are not committed")
        changed += [f"{x} changed" for x in now if x not in ("commit", "dirty") and before.get(x, {}) != now[x]]
        if changed:
            self.say(f"bits are not guaranteed after step {self.step}: {', '.join(changed)}")
        self.bits_guaranteed = meta["bits_guaranteed"] and not changed

    def _cut_evaluations(self, step: int) -> None:
        """Delete the evaluations after `step`; the summary becomes that of the newest one left, if any."""
        for path in (self.folder.path / "evals").glob("*.npz"):
            if not path.stem.isdecimal():
                continue
            try:
                if int(path.stem) <= step:
                    read_rows(path)
                    self.evaluated.add(int(path.stem))
                    continue
            except ConfigError as error:
                self.say(f"skipped {error}")  # made again if it is that of step 0 or of the step resumed at
            path.unlink()
        if 0 in self.evaluated:
            self._summarise()
        else:
            (self.folder.path / "summary.json").unlink(missing_ok=True)

    def _train(self, compiled: Compiled, state: Packed, stop: StopSignal, last: int) -> None:
        size, pending = self.chosen.steps_per_dispatch, None
        logged = False  # the first loss is shown as soon as it is there, not a dispatch late
        self._resume()
        while True:
            due = self._due()
            ends = stop.number is not None or self.step >= last
            if pending is not None and (due or ends or not logged):
                logged = self._take(pending, self.step) or logged
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
                self._take(pending, self.step)  # while the device works on the next dispatch
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
        due = due and self.step not in self.evaluated
        if (initial or due) and 0 not in self.evaluated:
            self._evaluate(compiled.unpack(compiled.fresh()), 0)
        if due and self.step > 0:
            self._evaluate(compiled.unpack(state), self.step)

    def _take(self, metrics: Tree, stop: int) -> bool:
        """Fetch the metrics of the dispatch that ended at step `stop`; whether a line was logged."""
        self.interval.add(fetch(metrics), stop)
        now = time.perf_counter()
        self.seconds += now - self.clock
        self.clock = now
        logs = stop % self.config.train.log_every == 0 or stop == self.config.train.steps
        if logs:
            line = {"step": stop, "seconds": round(self.seconds, 3), **self.interval.close()}
            self.metrics.write(line)
            self.progress.update(stop, line["loss"], line["accuracy"])
        return logs

    def _save(self, state: State) -> None:
        if self.step in self.whole:
            return
        self.metrics.sync()  # a run resumed from this checkpoint does not write them again
        meta = {
            "seconds": self.seconds,
            "interval": self.interval.saved(),
            "circumstances": self.folder.circumstances(),
            "bits_guaranteed": self.bits_guaranteed,
        }
        checkpoint.save(self.checkpoints, self.step, checkpoint.to_plain(jax.device_get(state)), meta)
        self.whole.add(self.step)
        policy = self.config.checkpoint
        checkpoint.prune(self.checkpoints, policy.keep_last, policy.keep_every, self.whole)
        self.folder.update(step=self.step, seconds=self.seconds)

    def _evaluate(self, state: State, step: int) -> None:
        rows = self.evaluator.rows({"params": state["params"], "frozen": state["frozen"]})
        write_rows(self._rows_path(step), rows)
        self.evaluated.add(step)
        self._summarise()

    def _summarise(self) -> None:
        """Write the summary of the newest evaluation, which that at initialisation made again is not."""
        step, train = max(self.evaluated), self.config.train
        rows, initial = read_rows(self._rows_path(step)), read_rows(self._rows_path(0))
        summary = summarise(rows, initial, steps=step, of=train.steps, varied=train.vary, **self.told)
        write_json(self.folder.path / "summary.json", summary)

    def _rows_path(self, step: int) -> pathlib.Path:
        return self.folder.path / "evals" / f"{step:06d}.npz"

    def _pause(self) -> None:
        self.progress.pause()
        self.seconds += time.perf_counter() - self.clock

    def _resume(self) -> None:
        self.progress.resume()
        self.clock = time.perf_counter()
