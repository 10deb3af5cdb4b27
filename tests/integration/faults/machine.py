"""What a machine does to runs: no room, no leave to write, a clock that jumps, signals, two who write, and NaN."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from faults.bench import Bench, Ended, Skipped, content, ending, free, need, refused, status


@contextlib.contextmanager
def disk(folder: pathlib.Path, options: str) -> Iterator[None]:
    """A disk of its own at `folder`. Raises Skipped where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "faults", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Skipped(f"no disk can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def again(folder: pathlib.Path, options: str) -> None:
    """Change a mounted disk."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full_disk(bench: Bench, draw: random.Random) -> int:
    """A disk that is full at some point of a run: one sentence, and the same command goes on when there is room."""
    whole = sum(len(data) + 4096 for data in content(bench.undisturbed).values())
    home = bench.root / "disk"
    with disk(home, f"size={draw.randint(20_000, whole)}"):
        _no_room(bench, home / "run", lambda: bench.run(home / "run"), lambda: again(home, "size=64m"))
    return 1


def file_limit(bench: Bench, draw: random.Random) -> int:
    """Files that may grow to a size only: one sentence, and the same command goes on without the limit."""
    run, planted = bench.fresh(), {"fault": "file_limit", "most": draw.randint(100, 40_000)}
    # The compile cache has larger files than a run: what is not written there is no fault.
    settings = {"POSITIONBIAS_CACHE": "off"}
    _no_room(bench, run, lambda: bench.run(run, planted=planted, settings=settings), lambda: None)
    return 1


def _no_room(bench: Bench, run: pathlib.Path, call: Callable[[], Ended], make_room: Callable[[], None]) -> None:
    ended = call()
    before = bench.whole(run) if run.exists() else set()
    if ended.code == 0:  # there was room, but maybe for the report, which the same command then draws
        told = [line for line in ended.err.splitlines() if "no report" in line]
        need(all("cannot write" in line for line in told), "why there is no report is not told", ended)
    else:
        refused(ended, "cannot write", codes=(1, 2))
        need(free(run), "the lock of a run without room is held")
        need(status(run) in (None, "running", "failed", "finished"), f"a run without room is {status(run)}")
        need(not _unmarked(run), "a save without room has left a part of it")
    make_room()
    bench.finish(run, before)
    shutil.rmtree(run)


def _unmarked(run: pathlib.Path) -> list[pathlib.Path]:
    homes = (run / "checkpoints").iterdir() if (run / "checkpoints").exists() else ()
    return [home for home in homes if not (home / "mark.json").exists()]


def read_only(bench: Bench, draw: random.Random) -> int:
    """A run folder that may only be read: refused in one sentence, and gone on with when it may be written again."""
    home = bench.root / "disk"
    if os.geteuid() != 0:
        return _by_rights(bench)
    with disk(home, "size=64m"):
        run = home / "run"
        shutil.move(bench.stopped(), run)
        before, wholes = content(run), bench.whole(run)
        again(home, "ro")
        ended = bench.run(run)
        again(home, "rw")
        refused(ended, "cannot write in", "Read-only")
        need(content(run) == before, "a run that may only be read is not as it was")
        bench.finish(run, wholes)
    return 1


def _by_rights(bench: Bench) -> int:
    run = bench.stopped()
    before, wholes = content(run), bench.whole(run)
    for folder in (run, *(p for p in run.rglob("*") if p.is_dir())):
        folder.chmod(0o555)
    (run / ".lock").chmod(0o444)
    ended = bench.run(run)
    for folder in (run, *(p for p in run.rglob("*") if p.is_dir())):
        folder.chmod(0o755)
    (run / ".lock").chmod(0o644)
    refused(ended, "cannot write in")
    need(content(run) == before, "a run that may only be read is not as it was")
    bench.finish(run, wholes)
    shutil.rmtree(run)
    return 1


def file_times(bench: Bench, draw: random.Random) -> int:
    """Files of a stopped run that are of 1980, of next century, or of anything between."""
    run = bench.stopped()
    for path in (run, *run.rglob("*")):
        moment = draw.choice((315532800.0, 4102444800.0, draw.uniform(3e8, 4e9)))
        os.utime(path, (moment, moment))
    bench.finish(run, bench.whole(run))
    shutil.rmtree(run)
    return 1


def clock_jumps(bench: Bench, draw: random.Random) -> int:
    """A time of day that jumps by up to ten years now and then, in a run that is killed on the way.

    Orbax measures by it how long a save takes, and may give one up: that is told, and the same command goes on.
    """
    run, planted = bench.fresh(), {"fault": "clock", "seed": draw.randrange(2**31)}
    bench.killed(bench.start(run, planted=planted), draw.uniform(0, bench.life))
    before = bench.truth(run, set()) if run.exists() else set()
    done = run.exists() and status(run) == "finished"
    ended = bench.run(run, planted=planted)
    bench.went_on(ended, before, done)
    if ended.code == 1:
        told = [
            line for line in ended.err.splitlines() if line.startswith("error: cannot write") and "imed out" in line
        ]
        need(len(told) == 1, "a save that is given up is not told", ended)
        need(status(run) == "failed", f"a run that gave a save up is {status(run)}", ended)
        bench.finish(run, bench.truth(run, before))
    else:
        need(ended.code == 0, "a run whose clock jumps does not end", ended)
        bench.same(run)
    shutil.rmtree(run)
    return 1


def two_writers(bench: Bench, draw: random.Random) -> int:
    """Several trainings and an evaluation in one folder at once: one of them trains, the others are told so."""
    run = bench.fresh()
    crowd = [bench.start(run) for _ in range(3)]
    bench.reach(crowd[0], draw.uniform(0, bench.life))
    crowd.append(bench.start(run, entry="evaluate", config=False))
    with ending(*crowd):
        ended = [bench.ended(process) for process in crowd]
    need(any(one.code == 0 for one in ended[:3]), "none of several runs in a folder ends", ended[0])
    for one in ended[:3]:
        if one.code != 0:
            refused(one, "is in use by process", codes=(4,))
    if ended[3].code not in (0, 4):  # before there is a checkpoint, or a config
        refused(ended[3], codes=(2,))
    for extra in (run / "evals").glob("step*"):
        extra.unlink()
    bench.run(run, entry="report", config=False)
    bench.same(run)
    shutil.rmtree(run)
    return 1


def signals(bench: Bench, draw: random.Random) -> int:
    """SIGTERM or SIGINT at any instant, once or twice: the code of the signal, and the same command goes on."""
    run, number = bench.fresh(), draw.choice((signal.SIGTERM, signal.SIGINT))
    twice = draw.random() < 0.7
    process = bench.start(run)
    with ending(process):
        bench.reach(process, draw.uniform(0, bench.life))
        process.send_signal(number)
        if twice:
            time.sleep(draw.choice((0.0, draw.uniform(0, 0.02), draw.uniform(0, 0.5))))
            process.send_signal(number)
        ended = bench.ended(process)
    early = ended.code == -number or (ended.code == 1 and "KeyboardInterrupt" in ended.err)
    # Python has not begun with ours, or has ended with it: nothing is trained then that a signal could stop.
    need(early or ended.code in (0, 128 + number), f"a run that got {number.name} ends otherwise", ended)
    before = bench.truth(run, set()) if run.exists() else set()
    told = status(run)
    if ended.code == 128 + number and before:
        need(told in ("stopped", "finished", "running"), f"a run that got {number.name} is {told!r}", ended)
    if number == signal.SIGTERM and ended.code == 143 and told == "stopped" and before:
        step = json.loads((run / "manifest.json").read_text())["step"]
        need(step == max(before), f"a run stopped at step {step} has no checkpoint of it", ended)
    if not early:
        need("Traceback" not in ended.err, "a run that is stopped shows a traceback", ended)
    bench.finish(run, before)
    shutil.rmtree(run)
    return 1 + twice


def not_finite(bench: Bench, draw: random.Random) -> int:
    """A loss that is NaN from a step on: code 3, no checkpoint of it, and without the fault the run goes on."""
    step = draw.randint(1, bench.steps)
    run = bench.fresh()
    for _ in range(draw.choice((1, 2))):
        ended = bench.run(run, planted={"fault": "not_finite", "step": step})
        need(ended.code == 3, "a loss that is not finite gives another code", ended)
        need("the loss of replica 0 is not finite at step" in ended.err, "a loss that is not finite is not told", ended)
        need(status(run) == "failed", "a run whose loss is not finite has not failed", ended)
    before = bench.truth(run, set())
    need(max(before, default=0) <= step, "a state that is not finite was saved")
    bench.finish(run, before)
    shutil.rmtree(run)
    return 1


def overflow(bench: Bench, draw: random.Random) -> int:
    """A learning rate that no run survives: code 3 with step and replica, the same again each time, no NaN saved."""
    run = bench.fresh()
    rate = [f"--config.optimizer.learning_rate=1e{draw.randint(20, 37)}", "--config.optimizer.name=sgd"]
    told = []
    for _ in range(2):
        ended = bench.run(run, *rate)
        need(ended.code == 3, "a loss that is not finite gives another code", ended)
        told.append(json.loads((run / "manifest.json").read_text())["message"])
        need(told[-1] in ended.err, "the manifest tells another end than the terminal", ended)
    need(told[0] == told[1], f"a run ends in two ways: {told}")
    need(not bench.whole(run), "a run that never had a finite step has saved one")
    shutil.rmtree(run)
    return 1
