"""Runs an entry of the package with a fault in its process: python planted.py '{"fault": NAME, ...}' MODULE ARGUMENTS.

Nothing of the package knows of it: what is patched here is patched from outside, in this process alone.
"""

from __future__ import annotations

import json
import os
import random
import resource
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def die() -> None:
    """As by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def at_file(folder: str, nth: int, named: str = "", told: str | None = None) -> None:
    """Die before the nth change to a file or folder below `folder` whose path has `named` in it.

    `told` is a file to which each change is appended.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            if not (flags or 0) & WRITES and not any(sign in (mode or "") for sign in "wax+"):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        # Trees are removed by names relative to a descriptor.
        relative = event in ("os.remove", "os.rmdir") and arguments[-1] != -1
        if not relative and not (isinstance(path, str | os.PathLike) and os.fspath(path).startswith(folder)):
            return
        if named not in os.fspath(path):
            return
        count += 1
        if told is not None and os.fspath(path) != told:
            descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{event} {os.fspath(path)}\n".encode())
            os.close(descriptor)
        if count == nth:
            die()

    sys.addaudithook(hook)


def _stages() -> dict[str, tuple[Any, str]]:
    """Where each stage of a run lives."""
    from positionbias import launch
    from positionbias.evaluation.by_position import Evaluator
    from positionbias.training import checkpoint, program, run_folder
    from positionbias.training.kept import Kept

    return {
        "claim": (run_folder.RunFolder, "claim"),
        "restore": (Kept, "restored"),
        "compile": (program.Program, "compile"),
        "cut": (Kept, "begin"),
        "step": (program.Compiled, "advance"),
        "save": (checkpoint, "save"),
        "prune": (checkpoint, "prune"),
        "settle": (Kept, "settle"),
        "evaluation": (Evaluator, "rows"),
        "rows": (Kept, "rows"),
        "last word": (run_folder.RunFolder, "release"),
        "report": (launch, "conclude"),
    }


def in_stage(stage: str, nth: int, delay: float) -> None:
    """Die `delay` seconds after a stage of the run begins for the nth time, at the latest as it ends."""
    owner, name = _stages()[stage]
    kind = vars(owner)[name]
    original, count = getattr(owner, name), 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count != nth:
            return original(*arguments, **named)
        timer = threading.Timer(delay, die)
        timer.daemon = True
        timer.start()
        original(*arguments, **named)
        die()

    setattr(owner, name, staticmethod(dying) if isinstance(kind, classmethod) else dying)


def not_finite(step: int) -> None:
    """The loss of replica 0 is NaN from the dispatch on that reaches `step`."""
    from positionbias.training.interval import Interval

    original: Callable[..., Any] = Interval.add

    def add(self: Any, metrics: dict[str, Any], ended: int) -> None:
        if ended >= step:
            loss = metrics["loss"].copy()
            loss[:1] = float("nan")
            metrics = {**metrics, "loss": loss}
        original(self, metrics, ended)

    Interval.add = add  # type: ignore


def clock(seed: int) -> None:
    """The time of day jumps by up to ten years, either way, every hundredth time or so that it is asked for."""
    draw, now, off = random.Random(seed), time.time, 0.0

    def jumping() -> float:
        nonlocal off
        if draw.random() < 0.01:
            off = draw.uniform(-3e8, 3e8)
        return now() + off

    time.time = jumping
    time.time_ns = lambda: int(1e9 * time.time())


def file_limit(most: int) -> None:
    """No file may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


FAULTS = {made.__name__: made for made in (at_file, in_stage, not_finite, clock, file_limit)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.argv = sys.argv[2:]
    sys.path[0] = os.getcwd()
    sys.path.insert(0, os.environ["PYTHONPATH"])
    FAULTS[given.pop("fault")](**given)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
