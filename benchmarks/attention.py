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
import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import problems
import record
import rivals
import timed
from given import check, recorded

from positionbias import kernels, runtime
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.errors import ConfigError
from positionbias.kernels.softmax_attention.ladder import DRIVERS

MODES = ("forward", "train", "penalty")
ON_REQUEST = "interpret"  # drivers with this in their names emulate a chip, slowly
LIBRARIES = ("torch", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "libtpu")
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


def driver(name: str, problem: problems.Problem, **more: Any) -> Callable[..., Any]:
    """The attention of a driver of the package; `Skip` where it cannot."""
    told = None if problem.mask is None else (problem.tokens, problem.tokens)
    more |= {"mask": problem.mask, "tokens": told, "impl": name}
    try:
        kernels.choice(problem.q, problem.k, problem.v, **more)
    except ConfigError as error:
        raise timed.Skip(str(error)) from error
    return functools.partial(kernels.attention, **more)


def program(problem: problems.Problem, name: str, mode: str) -> Any:
    """The program of a driver or of another library of jax, still to be compiled; that of PyTorch whole."""
    if name == rivals.FLEX:
        return rivals.Flex(problem, mode)
    _fits(name, problem)
    if name in DRIVERS:
        attend = driver(name, problem, **({"stats": ["received"]} if mode == "penalty" else {}))
    elif mode == "penalty":
        raise timed.Skip("the library does not tell the attention received")
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
        raise timed.Skip(f"all scores at once take about {wanted / 2**30:.0f} GiB")


def show(row: dict[str, Any]) -> str:
    """A line of the table."""
    begin = f"{row['mask']:<14}{row['length']:>6}{row['visible']:>9.1%}  {row['mode']:<8} {row['impl']:<16}"
    tile = "" if "milliseconds" not in row else f"{1e3 * row['milliseconds'] / row['tiles_visited']:12.4f}"
    more = f"   {row['extra']:+.1%} for the attention received" if "extra" in row else ""
    return timed.show(row, begin, tile + more)


def main(argv: list[str]) -> int:
    """Measure, print and record; returns the exit code."""
    if rivals.torch_version():
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # PyTorch needs the rest
    given, _ = parse_command_line(_parser(), argv)
    check(given, NAMES, MOST, ("minutes",))
    runtime.configure()
    over = timed.settled(given, DEFAULTS)
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
        make = functools.partial(program, problem)
        programs, said = timed.prepared(given.impl, given.modes, make, problem.arrays, over)
        timed.measure(programs, said, given.rounds, given.baseline, over)
        for (name, mode), found in said.items():
            without = said.get((name, "train"), {})
            if mode == "penalty" and "milliseconds" in found and "milliseconds" in without:
                found["extra"] = found["milliseconds"] / without["milliseconds"] - 1
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
    print(timed.show_skipped(rows, "mask", "length", "mode"))
    print(f"written: {path}")
    return 0


def _results(given: argparse.Namespace, rows: list[dict[str, Any]], left: list[dict[str, Any]]) -> dict[str, Any]:
    return {"given": recorded(given), "libraries": timed.libraries(LIBRARIES), "attentions": rows, "left_out": left}


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
