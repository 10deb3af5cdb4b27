"""Time and memory of attention: every driver of the package, and other libraries' attention, under the same masks.

    python benchmarks/attention.py [--minutes 9] [--impl xla_chunked mosaic_gpu torch_flex ...] [--lengths 512 2048 ...]

Three modes: the forward pass, forward and backward (`train`), and that with a penalty on the attention received
(`penalty`), for the package's drivers. The programs of a mask and length are compiled side by side and timed in turn,
round after round; told are the shortest and the median round, and how many times as long as the baseline's the shortest
is. Memory is that of temporary arrays as the compiler tells it; for PyTorch the most allocated in a run. In the JSON,
`device_peak` is the most that jax has had on the device in the process so far, `processor` are milliseconds of the
processor, and `difference` is the largest of the outputs from the baseline's. What cannot be timed is written down with
the reason, and once the minutes are over so is the rest.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import importlib.metadata
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import problems
import record
import rivals
from given import check

from positionbias import kernels, runtime
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.errors import ConfigError
from positionbias.kernels.softmax_attention.ladder import DRIVERS

MODES = ("forward", "train", "penalty")
ON_REQUEST = "interpret"  # drivers with this in their names emulate a chip, slowly
LIBRARIES = ("torch", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "libtpu")
LEAST = 0.02  # seconds that are timed at once: short programs are called so many times
MOST_CALLS = 200
# By platform: T of the first mask and of the others, tokens in a batch, heads, their size, type, masks, baseline.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "lengths": [128, 256, 512, 1024, 2048],
        "other_lengths": [128, 256, 512, 1024, 2048],
        "tokens": None,
        "heads": 4,
        "dtype": "float32",
        "masks": ["causal", "none", "window"],
        "baseline": "xla_dense",
    },
    "gpu": {
        "lengths": [2048, 8192, 32768, 512],
        "other_lengths": [8192],
        "tokens": 32768,
        "heads": 16,
        "dtype": "bfloat16",
        "masks": list(problems.MASKS),
        "baseline": "xla_chunked",
    },
}
BATCH = 2  # where the tokens of a batch are not told
IMPLS = (*DRIVERS, *rivals.RIVALS, rivals.FLEX)
NAMES = {
    "impl": IMPLS,
    "baseline": IMPLS,
    "masks": tuple(problems.MASKS),
    "modes": MODES,
    "dtype": ("bfloat16", "float16", "float32"),
}
MOST = {
    "lengths": 1 << 20,
    "other_lengths": 1 << 20,
    "tokens": 1 << 24,
    "heads": 1024,
    "head_size": 1024,
    "rounds": 1000,
}


class Program:
    """A compiled function of jax and its arguments."""

    def __init__(self, compiled: Any, problem: problems.Problem) -> None:
        self._compiled, self._given = compiled, problem.arrays
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


def driver(name: str, problem: problems.Problem, **more: Any) -> Callable[..., Any]:
    """The attention of a driver of the package; `Skip` where it cannot."""
    told = None if problem.mask is None else (problem.tokens, problem.tokens)
    more |= {"mask": problem.mask, "tokens": told, "impl": name}
    try:
        kernels.choice(problem.q, problem.k, problem.v, **more)
    except ConfigError as error:
        raise rivals.Skip(str(error)) from error
    return functools.partial(kernels.attention, **more)


def lowered(name: str, mode: str, problem: problems.Problem) -> Any:
    """The program of a driver or of another library of jax, still to be compiled."""
    _fits(name, problem)
    if name in DRIVERS:
        attend = driver(name, problem, **({"stats": ["received"]} if mode == "penalty" else {}))
    elif mode == "penalty":
        raise rivals.Skip("the library does not tell the attention received")
    else:
        attend = rivals.RIVALS[name](problem)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, w: jax.Array, by_key: jax.Array) -> jax.Array:
        return attend(q, k, v)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, w: jax.Array, by_key: jax.Array) -> jax.Array:
        made = attend(q, k, v)
        o, penalty = made, 0.0
        if mode == "penalty":
            o, stats = made
            penalty = jnp.sum(stats.received * by_key) / problem.length
        return jnp.sum(o.astype(jnp.float32) * w.astype(jnp.float32)) + penalty

    whole = forward if mode == "forward" else jax.value_and_grad(loss, argnums=(0, 1, 2))
    # The package asks for whole float32 products. Of 16 bits other libraries' kernels may not know what that means.
    asks = name in DRIVERS or problem.q.dtype.itemsize > 2
    with jax.default_matmul_precision("highest" if asks else "default"):
        return jax.jit(whole, keep_unused=True).lower(*problem.arrays)


def _fits(name: str, problem: problems.Problem) -> None:
    """Skip what holds all scores at once where they do not fit, before it takes the device down."""
    stats = jax.devices()[0].memory_stats() or {}
    batch, length, heads, _ = problem.q.shape
    wanted = 5 * 4 * batch * heads * length**2
    if name in ("xla_dense", "jax_nn_xla") and wanted > stats.get("bytes_limit", 16 << 30):
        raise rivals.Skip(f"all scores at once take about {wanted / 2**30:.0f} GiB")


def prepared(
    names: list[str], modes: list[str], problem: problems.Problem, over: Callable[[], bool]
) -> tuple[dict[tuple[str, str], Any], dict[tuple[str, str], dict[str, Any]]]:
    """Programs that are ready, and what there is to say of each instead or beside."""
    programs: dict[tuple[str, str], Any] = {}
    said: dict[tuple[str, str], dict[str, Any]] = {(name, mode): {} for name in names for mode in modes}
    waiting: dict[tuple[str, str], Any] = {}

    def tried(key: tuple[str, str], do: Callable[[], Any], into: dict[tuple[str, str], Any]) -> None:
        if over():
            said[key]["skipped"] = "the minutes are over"
            return
        started = time.perf_counter()
        try:
            into[key] = do()
        except (rivals.Skip, NotImplementedError) as reason:
            said[key]["skipped"] = str(reason)
        except Exception as error:
            said[key]["error"] = _text(error)
        said[key]["seconds_to_make"] = round(said[key].get("seconds_to_make", 0) + time.perf_counter() - started, 2)

    def compiled(made: Any) -> Program:
        return Program(made.compile(), problem)

    with concurrent.futures.ThreadPoolExecutor(max(1, min(8, runtime.cores()))) as pool:
        running = []
        for name, mode in said:
            if name == rivals.FLEX:
                tried((name, mode), functools.partial(rivals.Flex, problem, mode), programs)
                continue
            tried((name, mode), functools.partial(lowered, name, mode, problem), waiting)
            if (name, mode) in waiting:
                do = functools.partial(compiled, waiting[name, mode])
                running.append(pool.submit(tried, (name, mode), do, programs))
        concurrent.futures.wait(running)
    return {key: programs[key] for key in said if key in programs}, said


def measure(
    programs: dict[tuple[str, str], Any], said: dict[tuple[str, str], dict[str, Any]], given: Any, over: Any
) -> None:
    """Time programs in turn, and write into `said` what is found."""
    calls: dict[tuple[str, str], int] = {}
    times: dict[tuple[str, str], list[float]] = {}
    work: dict[tuple[str, str], list[float]] = {}
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
    for _ in range(given.rounds):
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
        base = times.get((given.baseline, key[1]))
        said[key]["ratio"] = min(found) / min(base) if base else None
        if key[1] == "train" and (key[0], "penalty") in times:
            said[key[0], "penalty"]["extra"] = min(times[key[0], "penalty"]) / min(found) - 1
        if key[1] == "forward" and given.baseline in first and key[0] in first:
            said[key]["difference"] = float(np.abs(first[key[0]] - first[given.baseline]).max())


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _timed(program: Any, calls: int) -> tuple[float, float]:
    """Seconds of one call by the clock, and of the processor."""
    busy, started = time.process_time(), time.perf_counter()
    for _ in range(calls):
        made = program.call()
    program.wait(made)
    return (time.perf_counter() - started) / calls, (time.process_time() - busy) / calls


def show(row: dict[str, Any]) -> str:
    """A line of the table."""
    begin = f"{row['mask']:<14}{row['length']:>6}{row['visible']:>9.1%}  {row['mode']:<8} {row['impl']:<16}"
    if "milliseconds" not in row:
        return f"{begin}  error: {row['error']}"[:160].splitlines()[0]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    memory = "" if row["memory"] is None else f"{row['memory'] / 2**20:.1f}"
    tile = 1e3 * row["milliseconds"] / row["tiles_visited"]
    more = f"   {row['extra']:+.1%} for the attention received" if "extra" in row else ""
    return f"{begin}{row['milliseconds']:10.3f}{row['median']:10.3f}{ratio:>8}{memory:>10}{tile:12.4f}{more}"


def show_skipped(rows: list[dict[str, Any]]) -> str:
    """What was not timed, and why: a line for each reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "skipped" in row:
            found.setdefault((row["impl"], row["skipped"]), []).append(f"{row['mask']} {row['length']} {row['mode']}")
    lines = [f"  {name}: {why} ({', '.join(dict.fromkeys(where))})" for (name, why), where in found.items()]
    return "\n".join(line if len(line) < 240 else f"{line[:236]} ..." for line in lines)


def main(argv: list[str]) -> int:
    """Measure, print and record; returns the exit code."""
    if rivals.torch_version():
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # PyTorch needs the rest
    given, _ = parse_command_line(_parser(), argv)
    check(given, NAMES, MOST, ("minutes",))
    runtime.configure()
    for name, value in DEFAULTS["cpu" if jax.default_backend() == "cpu" else "gpu"].items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    stop = time.perf_counter() + 60 * given.minutes

    def over() -> bool:
        return time.perf_counter() > stop

    rows: list[dict[str, Any]] = []
    print(f"{'mask':<14}{'T':>6}{'visible':>9}  {'mode':<8} {'impl':<16}", end="")
    print(f"{'min ms':>10}{'median':>10}{'ratio':>8}{'MiB':>10}{'us/tile':>12}   (ratio to {given.baseline})")
    sizes = [
        (mask, n) for mask in given.masks for n in (given.lengths if mask == given.masks[0] else given.other_lengths)
    ]
    path, left = None, []
    for mask, length in sizes:
        if over():
            left.append({"mask": mask, "length": length})
            continue
        batch = max(1, given.tokens // length) if given.tokens else BATCH
        problem = problems.problem(mask, length, batch, given.heads, given.head_size, jnp.dtype(given.dtype))
        started = time.perf_counter()
        tiles = problem.tiles
        seconds = round(time.perf_counter() - started, 2)
        programs, said = prepared(given.impl, given.modes, problem, over)
        measure(programs, said, given, over)
        common = {"mask": mask, "length": length, "batch": batch, "visible": problem.visible, "tiles": tiles}
        common |= {"tiles_visited": batch * given.heads * (tiles["partial"] + tiles["full"]), "tiles_seconds": seconds}
        new = [{**common, "impl": name, "mode": mode, **found} for (name, mode), found in said.items()]
        new.sort(key=lambda row: MODES.index(row["mode"]))
        rows += new
        for row in new:
            if "skipped" not in row:
                print(show(row), flush=True)
        path = record.write(f"attention_{jax.default_backend()}", _results(given, rows, []), given.folder)
    path = record.write(f"attention_{jax.default_backend()}", _results(given, rows, left), given.folder)
    print("not timed:", *(f"{one['mask']} {one['length']} (the minutes are over)" for one in left), sep="\n  ")
    print(show_skipped(rows))
    print(f"written: {path}")
    return 0


def _results(given: argparse.Namespace, rows: list[dict[str, Any]], left: list[dict[str, Any]]) -> dict[str, Any]:
    installed = {package.metadata["Name"] for package in importlib.metadata.distributions()}
    told = {key: value for key, value in vars(given).items() if key != "folder"}
    more = {name: importlib.metadata.version(name) for name in LIBRARIES if name in installed}
    return {"given": told, "libraries": more, "attentions": rows, "left_out": left}


def _parser() -> Parser:
    made = Parser("python benchmarks/attention.py", "Time and memory of attention.")
    own = [name for name in DRIVERS if ON_REQUEST not in name]
    made.add_argument("--minutes", type=float, default=9.0, help="after which nothing more is begun")
    made.add_argument("--impl", nargs="+", default=[*own, *rivals.RIVALS, rivals.FLEX], help=", ".join(IMPLS))
    made.add_argument("--baseline", help="the one of them that times are told as multiples of")
    made.add_argument("--masks", nargs="+", help=", ".join(problems.MASKS))
    made.add_argument("--modes", nargs="+", default=list(MODES), help=", ".join(MODES))
    made.add_argument("--lengths", nargs="+", type=int, help="T under the first mask")
    made.add_argument("--other-lengths", nargs="+", type=int, help="T under the other masks")
    made.add_argument("--tokens", type=int, help=f"in a batch, whatever T; {BATCH} sequences where not told on a CPU")
    made.add_argument("--heads", type=int)
    made.add_argument("--head-size", type=int, default=64)
    made.add_argument("--dtype", help=", ".join(NAMES["dtype"]))
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--folder", type=pathlib.Path, default=record.RESULTS, help="where the JSON is written")
    return made


if __name__ == "__main__":
    run_entry(main)
