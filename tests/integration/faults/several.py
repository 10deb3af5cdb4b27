"""One run in several processes, of which some die or stand still; its folder goes on in one process, or in all."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time

from faults.bench import LOG, Bench, Ended, ending, need, status

SHARED = ("replicas=1", "microbatch=4", "mesh.replica=auto", "mesh.data=auto")
SOON = 60.0  # seconds after which those that are left must have ended too, where a process is gone
HEARTBEATS = 240.0  # where one stands still: JAX gives it 100 s
UNTOLD = -signal.SIGABRT  # how JAX ends a process that has lost the first one, or one that stands still


def bench_of(root: pathlib.Path) -> Bench:
    """A bench whose runs can be shared by two processes."""
    return Bench(root, [f"--config.train.{field}" for field in SHARED])


def together(bench: Bench, run: pathlib.Path, *more: str) -> list[subprocess.Popen]:
    """Start a run in two processes."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{made.getsockname()[1]}"
    return [bench.start(run, "--processes", f"{address},2,{index}", *more) for index in (0, 1)]


def killed(bench: Bench, draw: random.Random) -> int:
    """Kill -9 of one of two processes, or of both: the other ends soon, and one process goes on with the same curve."""
    run, which = bench.fresh(), draw.choice(((0,), (1,), (0, 1)))
    both = together(bench, run)
    with ending(*both):
        _after(bench, run, both, draw)
        for index in which:
            both[index].kill()
        started = time.monotonic()
        for index in {0, 1} - set(which):
            ended = bench.ended(both[index])
            _told(ended, which)
            waited = time.monotonic() - started
            need(waited < SOON, f"a process ends {waited:.0f} s after the other was killed", ended)
    return _gone_on(bench, run)


def _after(bench: Bench, run: pathlib.Path, both: list[subprocess.Popen], draw: random.Random) -> None:
    """Wait until some instant after training began."""
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.02)
        for process in both:
            need(process.poll() is None, "one of two processes ended early")
    step = draw.randint(0, bench.steps * 3 // 4)
    while (run / "metrics.jsonl").read_bytes().count(b"\n") < step // LOG and both[0].poll() is None:
        time.sleep(0.005)


def _told(ended: Ended, which: tuple[int, ...]) -> None:
    """How the one that is left ends: with a sentence where the first is left, by JAX where the first is gone."""
    if which == (1,):
        need(ended.code in (0, 1), "the first of two processes ends otherwise when the second is killed", ended)
        if ended.code == 1:
            need("another process of this run has ended" in ended.err, "a lost process is not told", ended)
            need("Traceback" not in ended.err, "a lost process is told by a traceback", ended)
    else:
        need(ended.code in (0, 1, UNTOLD), "the second of two processes ends otherwise", ended)


def _gone_on(bench: Bench, run: pathlib.Path) -> int:
    """One process goes on from what two have left."""
    before, done = bench.truth(run, set(), bench.close), status(run) == "finished"
    ended = bench.run(run)
    need(ended.code == 0, "one process does not go on from what two left", ended)
    bench.went_on(ended, before, done)
    bench.close(run)
    shutil.rmtree(run)
    return 1


def killed_and_back(bench: Bench, draw: random.Random) -> int:
    """Kill -9 of both, after which both go on: the bits are those of two that nothing happened to."""

    def undisturbed() -> pathlib.Path:
        run = bench.root / "two"
        for ended in [bench.ended(process) for process in together(bench, run)]:
            need(ended.code == 0, "a run in two processes fails", ended)
        bench.close(run)
        return run

    reference, run = bench.once("two", undisturbed), bench.fresh()
    both = together(bench, run)
    with ending(*both):
        _after(bench, run, both, draw)
        for process in draw.sample(both, 2):
            process.kill()
    before, done = bench.truth(run, set(), lambda found: bench.same(found, reference)), status(run) == "finished"
    both = together(bench, run)
    with ending(*both):
        first, second = (bench.ended(process) for process in both)
    need((first.code, second.code) == (0, 0), "two processes do not go on", first if first.code else second)
    bench.went_on(first, before, done)
    bench.same(run, reference)
    shutil.rmtree(run)
    return 1


def stalled(bench: Bench, draw: random.Random) -> int:
    """One of two stands still: JAX's heartbeats end the other, and it when it goes on; one process then goes on."""
    run, which = bench.fresh(), draw.choice((0, 1))
    both = together(bench, run)
    with ending(*both):
        _after(bench, run, both, draw)
        both[which].send_signal(signal.SIGSTOP)
        ended = bench.ended(both[1 - which], HEARTBEATS)
        need(ended.code in (0, 1, UNTOLD), "the process that waits for a stalled one ends otherwise", ended)
        os.kill(both[which].pid, signal.SIGCONT)
        last = bench.ended(both[which], HEARTBEATS)
        need(last.code in (0, 1, UNTOLD), "a stalled process that goes on ends otherwise", last)
    return _gone_on(bench, run)
