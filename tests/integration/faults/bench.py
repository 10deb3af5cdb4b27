"""Runs that faults are planted in, and what must hold after each: the folder tells the truth, and nothing is lost.

A `Bench` starts the entries of the package as a user does, each in a process of its own. What it finds lost it raises
as `Lost`, with what the process said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from positionbias.evaluation.rows import read_rows
from positionbias.training import checkpoint
from positionbias.training.writers import read_metrics

ROOT = pathlib.Path(__file__).parents[3]
PLANTED = pathlib.Path(__file__).with_name("planted.py")
LONGEST = 900.0  # seconds until a process counts as one that hangs; others may have the cores
STEPS, LOG, KEEP_LAST = 2000, 20, 3
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{
        "name": "faults",
        "task": "inverse_permutation(n=4, alphabet=4)",
        "model": {{"layers": 1, "width": 16, "heads": 2}},
        "train": {{
            "steps": {steps}, "batch_size": 8, "replicas": 2, "log_every": {LOG}, "mesh": {{"replica": 1, "data": 1}},
        }},
        "checkpoint": {{"every": {save}, "keep_last": {KEEP_LAST}, "keep_every": {evaluate}}},
        "evaluation": {{"every": {evaluate}, "items": 24, "batch_size": 16, "influence_items": 8}},
    }})


def sweep(add):
    for name, steps in {cells}.items():
        add({{"train.steps": steps, "evaluation.every": None}}, name=name)
"""
CELLS = {"short": 400, "long": 1000}  # steps of the cells of the sweep


class Lost(AssertionError):
    """Something that a fault must not cost was lost."""


class Skipped(Exception):
    """A fault that cannot be planted on this machine, and why."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its code, what it said, and after how many seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        return f"code {self.code} after {self.seconds:.1f} s\n{self.out[-1500:]}\n{self.err[-3000:]}"


def need(holds: bool, what: str, ended: Ended | None = None) -> None:
    """Raise Lost unless `holds`."""
    if not holds:
        raise Lost(what if ended is None else f"{what}; the process said: {ended.said}")


# What a run that is killed after its last word has not written yet.
REPORT = ("report.html", ".report.html.tmp")


class Bench:
    """A folder of runs of one config; `flags` go to every command, so that all of them are of one layout."""

    def __init__(self, root: pathlib.Path, flags: Sequence[str] = (), steps: int = STEPS) -> None:
        self.root, self.flags, self.steps = root.absolute(), tuple(flags), steps
        self.save, self.evaluate = steps // 10, steps // 2  # every so many steps
        self.root.mkdir(parents=True, exist_ok=True)
        told = {"steps": steps, "save": self.save, "evaluate": self.evaluate, "cells": CELLS}
        (self.root / "config.py").write_text(CONFIG.format(LOG=LOG, KEEP_LAST=KEEP_LAST, **told))
        self._made: dict[str, Any] = {}
        self._count = 0

    # -------------------------------------------------------------------------------------------------------- processes

    def fresh(self) -> pathlib.Path:
        """The path of a run that is not there yet."""
        self._count += 1
        return self.root / f"run{self._count}"

    def start(
        self,
        run: pathlib.Path,
        *more: str,
        entry: str = "train",
        planted: dict[str, Any] | None = None,
        config: bool = True,
        **options: Any,
    ) -> subprocess.Popen:
        """Start an entry on a run, with a fault of `planted.py` in it where one is given."""
        command = [sys.executable, "-m", f"positionbias.{entry}"]
        if planted is not None:
            command = [sys.executable, str(PLANTED), json.dumps(planted), f"positionbias.{entry}"]
        given = ["--config", str(self.root / "config.py"), *self.flags] if config else []
        settings = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **options.pop("settings", {})}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [*command, *given, "--workdir", str(run), *more], cwd=self.root, env=settings, **pipes, **options
        )

    def ended(self, process: subprocess.Popen, seconds: float = LONGEST) -> Ended:
        """Wait for a process; Lost if it hangs."""
        started = time.monotonic()
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise Lost(f"a process hangs for {seconds} s, and said: {out[-1500:]}\n{err[-3000:]}") from None
        return Ended(process.returncode, out, err, time.monotonic() - started)

    def run(self, run: pathlib.Path, *more: str, **options: Any) -> Ended:
        """Run an entry to its end."""
        return self.ended(self.start(run, *more, **options))

    def reach(self, process: subprocess.Popen, seconds: float) -> bool:
        """Wait until a process has had so many seconds of processors; whether it got there before its end.

        Instants are told so, because others may have the cores for any time.
        """
        while process.poll() is None:
            if _worked(process.pid) >= seconds:
                return True
            time.sleep(0.005)
        return False

    def killed(self, process: subprocess.Popen, after: float) -> Ended | None:
        """Kill -9 after so many seconds of work; how the process ended if it did so before."""
        if not self.reach(process, after):
            return self.ended(process)
        process.kill()
        process.communicate()
        return None

    # ------------------------------------------------------------------------------------------------------ undisturbed

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for this bench."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def undisturbed(self) -> pathlib.Path:
        """The folder of a run that nothing happened to."""

        def make() -> pathlib.Path:
            ended = self.run(self.root / "undisturbed")
            need(ended.code == 0, "a run that nothing happens to fails", ended)
            return self.root / "undisturbed"

        return self.once("undisturbed", make)

    def spent(self, call: Callable[[], Ended]) -> float:
        """The seconds of processors that a process takes from its start to its end, which must be a good one."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = call()
        need(ended.code == 0, "what nothing happens to fails", ended)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    @property
    def life(self) -> float:
        """The seconds of processors that an undisturbed run takes when all is compiled."""

        def make() -> float:
            self.undisturbed  # noqa: B018  (made first, which compiles)
            run = self.fresh()
            seconds = self.spent(lambda: self.run(run))
            self.same(run)
            shutil.rmtree(run)
            return seconds

        return self.once("life", make)

    def stopped(self) -> pathlib.Path:
        """A copy of a run that was stopped between two checkpoints that its config asks for."""

        def make() -> pathlib.Path:
            ended = self.run(self.root / "stopped", "--stop_after", str(self.steps * 5 // 8 + self.save // 2))
            need(ended.code == 0, "a run cannot be stopped", ended)
            return self.root / "stopped"

        return self._copy(self.once("stopped", make))

    def finished(self) -> pathlib.Path:
        """A copy of the undisturbed run."""
        return self._copy(self.undisturbed)

    def _copy(self, of: pathlib.Path) -> pathlib.Path:
        run = self.fresh()
        shutil.copytree(of, run)
        return run

    # -------------------------------------------------------------------------------------------------------- the truth

    def whole(self, run: pathlib.Path) -> set[int]:
        """The steps of a run whose checkpoints are whole."""
        home = run / "checkpoints"
        return {step for step in checkpoint.steps(home) if checkpoint.whole(home, step)}

    def truth(
        self, run: pathlib.Path, before: set[int], judge: Callable[[pathlib.Path], None] | None = None
    ) -> set[int]:
        """Check what a killed run left, and return the steps that are whole: of `before` all that the config keeps.

        `judge` checks a run that says it is finished; default: `same`.
        """
        need(free(run), "the lock of a killed run is held")
        manifest = status(run)
        need(manifest in (None, "running", "stopped", "failed", "finished"), f"the status of the run is {manifest!r}")
        if manifest == "finished":
            judge(run) if judge else self.same(run, without=REPORT)
        found = self.whole(run)
        for step in before - found:
            newer = sum(other > step for other in found)
            need(newer >= KEEP_LAST and step % self.evaluate != 0, f"checkpoint {step} was whole and is lost")
        return found

    def finish(self, run: pathlib.Path, before: set[int], *more: str, **kept: Any) -> Ended:
        """The same command again, which must go on from the newest whole checkpoint and end like an undisturbed run."""
        done = status(run) == "finished"
        ended = self.run(run, *more)
        need(ended.code == 0, "the same command does not go on", ended)
        self.went_on(ended, before, done)
        self.same(run, **kept)
        return ended

    def went_on(self, ended: Ended, before: set[int], done: bool = False) -> None:
        """Whether a process went on from the newest step of `before`."""
        told = f"resumed at step {max(before)} of" if before and not done else None
        if told is None:
            need("resumed at step" not in ended.out, "a run went on from nowhere", ended)
        else:
            need(told in ended.out, f"a run did not say {told!r}", ended)

    def same(
        self,
        run: pathlib.Path,
        reference: pathlib.Path | None = None,
        without: Sequence[str] = (),
        since: int = 0,
        steps: int | None = None,
    ) -> None:
        """Raise Lost unless the run ended like an undisturbed one, to the bit.

        `without` names files and folders that a fault itself took, `since` the step before which lines are gone.
        """
        other, steps = reference or self.undisturbed, steps or self.steps
        manifest = json.loads((run / "manifest.json").read_text())
        need((manifest["status"], manifest["step"]) == ("finished", steps), f"the manifest says {manifest}")
        need(_lines(run, since) == _lines(other, since), f"the metrics of {run} are others")
        found, known = set(checkpoint.steps(run / "checkpoints")), set(checkpoint.steps(other / "checkpoints"))
        taken = {int(name.removeprefix("checkpoints/")) for name in without if name.startswith("checkpoints/")}
        kept = {step for step in known if step % self.evaluate == 0 or sum(one > step for one in found) < KEEP_LAST}
        gone = kept - found - taken  # the others gave their places to one that a signal asked for
        need(not gone, f"checkpoints {sorted(gone)} are gone")
        need(checkpoint.whole(run / "checkpoints", steps), "the last checkpoint is not whole")
        for step in (found & known) - taken:
            need(_leaves(run, step) == _leaves(other, step), f"checkpoint {step} is another")
        for path in sorted((other / "evals").glob("*.npz")):
            if f"evals/{path.name}" not in without:
                need(_same_rows(run / "evals" / path.name, path), f"the evaluation {path.name} is another")
        if "summary.json" not in without:
            need(_json(run / "summary.json") == _json(other / "summary.json"), "the summary is another")
        extra = _names(run) ^ _names(other)
        need(extra <= set(without), f"files {sorted(extra)} are there or gone")

    def close(self, run: pathlib.Path, tolerance: float = 1e-4) -> None:
        """Raise Lost unless the run's curves are those of the undisturbed run, which had another layout."""
        lines, others = read_metrics(run / "metrics.jsonl"), read_metrics(self.undisturbed / "metrics.jsonl")
        need([x["step"] for x in lines] == [x["step"] for x in others], f"{run} has other lines of metrics")
        for name in ("loss", "gradient_norm"):
            found, known = (np.array([line[name] for line in all_]) for all_ in (lines, others))
            most = float(np.max(np.abs(found - known) / np.abs(known)))
            need(most <= tolerance, f"{name} of {run} differs by {most:.1e} of itself")


# ---------------------------------------------------------------------------------------------------------------- parts


def _worked(pid: int) -> float:
    """The seconds of processors that a process has had, all of its threads, as Linux tells it."""
    try:
        told = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return 0.0
    fields = told.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status(run: pathlib.Path) -> str | None:
    """What the manifest says; None where there is none. Lost if it is not JSON: it is replaced whole or not at all."""
    try:
        return json.loads((run / "manifest.json").read_text())["status"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise Lost(f"the manifest of {run} cannot be read: {error}") from None


def free(run: pathlib.Path) -> bool:
    """Whether nobody holds the folder."""
    if not (run / ".lock").exists():
        return True
    with open(run / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def refused(ended: Ended, *words: str, codes: Sequence[int] = (2,)) -> None:
    """Raise Lost unless a command was refused in one sentence that holds the words."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    need(ended.code in codes, f"a command is not refused with code {codes}", ended)
    need(len(lines) == 1 and lines[0].startswith("error: "), "a refusal is not one sentence", ended)
    need(all(word in lines[0] for word in words), f"a refusal does not tell {words}", ended)


def content(run: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock."""
    paths = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


@contextlib.contextmanager
def ending(*processes: subprocess.Popen) -> Iterator[None]:
    """None of the processes outlives the block."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()


def _json(path: pathlib.Path) -> Any:
    need(path.exists(), f"{path} is gone")
    return json.loads(path.read_text())


def _lines(run: pathlib.Path, since: int) -> list[dict[str, Any]]:
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] > since]
    seconds = [line.pop("seconds") for line in lines]
    need(seconds == sorted(seconds) and min(seconds, default=0) >= 0, "the seconds of the metrics run backwards")
    return lines


def _leaves(run: pathlib.Path, step: int) -> dict[str, Any]:
    return _json(checkpoint.path_of(run / "checkpoints", step) / checkpoint.MARK)["leaves"]


def _same_rows(path: pathlib.Path, other: pathlib.Path) -> bool:
    if not path.exists():
        return False
    found, known = read_rows(path), read_rows(other)
    return found.keys() == known.keys() and all(_alike(found[name], known[name]) for name in known)


def _alike(found: Any, known: Any) -> bool:
    return found.tobytes() == known.tobytes() if isinstance(known, np.ndarray) else found == known


def _names(run: pathlib.Path) -> set[str]:
    """What lies in a run folder, checkpoints' own files apart."""
    paths = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {name for name in (str(p.relative_to(run)) for p in paths) if not name.startswith("checkpoints/")}
