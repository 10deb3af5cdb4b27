"""Programs that are compiled side by side and timed in turn, round after round."""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from positionbias import runtime

LEAST = 0.02  # seconds that are timed at once: short programs are called so many times
MOST_CALLS = 200
Which = tuple[str, str]  # who computes, and the mode
Said = dict[Which, dict[str, Any]]


class Skip(Exception):
    """Why something is not timed."""


class Program:
    """A compiled function of jax and its arguments."""

    def __init__(self, compiled: Any, arrays: Sequence[jax.Array]) -> None:
        self._compiled, self._given = compiled, arrays
        analysis = compiled.memory_analysis()
        self.memory = None if analysis is None else int(analysis.temp_size_in_bytes)

    def call(self) -> Any:
        """Start one run; returns what it makes."""
        return self._compiled(*self._given)

    def wait(self, made: Any) -> None:
        """Until it is there."""
        jax.block_until_ready(made)

    def output(self) -> np.ndarray:
        """What a forward run makes."""
        return np.asarray(self.call(), np.float32)


def settled(given: argparse.Namespace, defaults: Mapping[str, Mapping[str, Any]]) -> Callable[[], bool]:
    """Fill in what was not given by the defaults of this platform, "cpu" or "gpu"; whether the minutes are over."""
    for name, value in defaults["cpu" if jax.default_backend() == "cpu" else "gpu"].items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return ends(given.minutes)


def each(said: Mapping[str, Any], count: float) -> dict[str, Any]:
    """What is said of a run that does so many things, with the times of one."""
    times = ("milliseconds", "median", "processor")
    return {**said, **{time: said[time] / count for time in times if time in said}}


def ends(minutes: float) -> Callable[[], bool]:
    """Whether so many minutes from now on are over."""
    stop = time.perf_counter() + 60 * minutes
    return lambda: time.perf_counter() > stop


def prepared(
    names: Sequence[str],
    modes: Sequence[str],
    make: Callable[[str, str], Any],
    arrays: Sequence[jax.Array],
    over: Callable[[], bool],
) -> tuple[dict[Which, Any], Said]:
    """Programs that are ready, and what there is to say of each instead or beside.

    `make` lowers the program of a name and mode, to be compiled beside the others, or returns what is ready, with
    `call`, `wait`, `output` and `memory` as `Program` has them; it raises `Skip` with the reason where it cannot.
    """
    programs: dict[Which, Any] = {}
    said: Said = {(name, mode): {} for name in names for mode in modes}

    def tried(key: Which, do: Callable[[], Any]) -> Any:
        if over():
            said[key]["skipped"] = "the minutes are over"
            return None
        started, made = time.perf_counter(), None
        try:
            made = do()
        except (Skip, NotImplementedError) as reason:
            said[key]["skipped"] = str(reason)
        except Exception as error:
            said[key]["error"] = _text(error)
        said[key]["seconds_to_make"] = round(said[key].get("seconds_to_make", 0) + time.perf_counter() - started, 2)
        return made

    def compiled(key: Which, lowered: Any) -> None:
        programs[key] = tried(key, lambda: Program(lowered.compile(), arrays))

    with concurrent.futures.ThreadPoolExecutor(max(1, min(8, runtime.cores()))) as pool:
        running = []
        for key in said:
            made = tried(key, functools.partial(make, *key))
            if hasattr(made, "compile"):
                running.append(pool.submit(compiled, key, made))
            else:
                programs[key] = made
        concurrent.futures.wait(running)
    return {key: programs[key] for key in said if programs.get(key) is not None}, said


def measure(programs: dict[Which, Any], said: Said, rounds: int, baseline: str, over: Callable[[], bool]) -> None:
    """Time programs in turn, and write into `said` what is found."""
    calls: dict[Which, int] = {}
    times: dict[Which, list[float]] = {}
    work: dict[Which, list[float]] = {}
    first: dict[str, np.ndarray] = {}
    for key, program in list(programs.items()):
        try:
            program.wait(program.call())
            seconds, _ = _timed(program, 1)
            calls[key] = max(1, min(MOST_CALLS, round(LEAST / max(seconds, 1e-6))))
            if key[1] == "forward":
                first[key[0]] = program.output()
        except Exception as error:
            said[key]["error"] = _text(error)
            del programs[key]
        stats = jax.devices()[0].memory_stats() or {}
        said[key] |= {"memory": program.memory, "device_peak": stats.get("peak_bytes_in_use")}
    for _ in range(rounds):
        for key, program in list(programs.items()):
            if over() and key in times:
                continue
            try:
                seconds, busy = _timed(program, calls[key])
            except Exception as error:
                said[key]["error"] = _text(error)
                del programs[key]
                continue
            times.setdefault(key, []).append(1e3 * seconds)
            work.setdefault(key, []).append(1e3 * busy)
    for key, found in times.items():
        told = {"milliseconds": min(found), "median": statistics.median(found), "rounds": len(found)}
        said[key] |= told | {"processor": min(work[key])}
        base = times.get((baseline, key[1]))
        said[key]["ratio"] = min(found) / min(base) if base else None
        if base:  # of the two in the same round
            rounds_apart = sorted(one / other for one, other in zip(found, base, strict=False))
            middle = statistics.median(rounds_apart)
            said[key]["spread"] = {"least": rounds_apart[0], "median": middle, "most": rounds_apart[-1]}
            said[key]["processor_ratio"] = min(work[key]) / max(min(work[baseline, key[1]]), 1e-9)
        if key[1] == "forward" and baseline in first and key[0] in first:
            said[key]["difference"] = float(np.abs(first[key[0]] - first[baseline]).max())


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _timed(program: Any, calls: int) -> tuple[float, float]:
    """Seconds of one call by the clock, and of the processor."""
    busy, started = time.process_time(), time.perf_counter()
    for _ in range(calls):
        made = program.call()
    program.wait(made)
    return (time.perf_counter() - started) / calls, (time.process_time() - busy) / calls


def show(row: dict[str, Any], begin: str, more: str = "") -> str:
    """A line of a table: times, ratio and memory, or the error, behind what the row is of."""
    if "milliseconds" not in row:
        return f"{begin}  error: {row['error']}"[:160].splitlines()[0]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    memory = "" if row["memory"] is None else f"{row['memory'] / 2**20:.1f}"
    return f"{begin}{row['milliseconds']:10.3f}{row['median']:10.3f}{ratio:>8}{memory:>10}{more}"


def show_skipped(rows: list[dict[str, Any]], *told: str) -> str:
    """What was not timed, and why: a line for each reason, with what its rows have under the names `told`."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "skipped" in row:
            where = " ".join(str(row[name]) for name in told)
            found.setdefault((row["impl"], row["skipped"]), []).append(where)
    lines = [f"  {name}: {why} ({', '.join(dict.fromkeys(where))})" for (name, why), where in found.items()]
    return "\n".join(line if len(line) < 240 else f"{line[:236]} ..." for line in lines)


def libraries(names: Sequence[str]) -> dict[str, str]:
    """Versions of those of these packages that are installed."""
    installed = {package.metadata["Name"] for package in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in names if name in installed}
