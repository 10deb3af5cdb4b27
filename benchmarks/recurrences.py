"""Time and memory of the recurrences: every driver of the package, and flash-linear-attention where it is installed.

    python benchmarks/recurrences.py [--minutes 5] [--impl xla_chunked mosaic_gpu fla ...] [--lengths 2048 8192 ...]

Two modes: forwards, and forwards and backwards to all that is read (`train`). Kinds are `plain` (linear attention
without decays), `scalar` and `channel` (with decays a head or a channel of keys), `delta`, `gated_delta`, and `memory`
(that of Titans, by chunks of 16 steps). What is told of each is what `attention.py` tells.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
import rival_recurrences as rival
import timed
from given import check, recorded

from positionbias import kernels, runtime
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.errors import ConfigError
from positionbias.kernels.delta_recurrence import ladder as delta
from positionbias.kernels.linear_recurrence import ladder as linear

MODES = ("forward", "train")
CHUNK = 16  # of Titans' memory
KINDS: dict[str, Callable[..., Any]] = {
    "plain": kernels.linear_attention,
    "scalar": kernels.linear_attention,
    "channel": kernels.linear_attention,
    "delta": kernels.delta_rule,
    "gated_delta": kernels.delta_rule,
    "memory": functools.partial(kernels.linear_memory, chunk=CHUNK),
}
ON_REQUEST = "interpret"  # drivers with this in their names emulate a chip, slowly
DRIVERS = tuple({**linear.DRIVERS, **delta.DRIVERS})
IMPLS = (*DRIVERS, rival.NAME)
LIBRARIES = (rival.LIBRARY, "torch", "triton", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
NAMES = {
    "impl": IMPLS,
    "baseline": IMPLS,
    "kinds": tuple(KINDS),
    "modes": MODES,
    "dtype": ("bfloat16", "float16", "float32"),
}
MOST = {"lengths": 1 << 20, "tokens": 1 << 24, "heads": 1024, "head_size": 1024, "rounds": 1000}
# By platform: T, tokens in a batch, heads, their size, type.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"lengths": [512, 2048], "tokens": 4096, "heads": 4, "head_size": 64, "dtype": "float32"},
    "gpu": {"lengths": [2048, 8192, 32768], "tokens": 32768, "heads": 16, "head_size": 128, "dtype": "bfloat16"},
}


def drawn(kind: str, length: int, given: argparse.Namespace) -> dict[str, jax.Array]:
    """What a recurrence reads by name, of this type but for decays; keys are of length 1."""
    draw, steps = np.random.default_rng(0), (max(1, given.tokens // length), length, given.heads)
    told = {name: draw.normal(size=(*steps, given.head_size)) for name in "qkv"}
    told["q"] /= np.sqrt(given.head_size)
    told["k"] /= np.linalg.norm(told["k"], axis=-1, keepdims=True)
    made = {name: jnp.asarray(x, given.dtype) for name, x in told.items()}
    if kind in ("scalar", "channel", "gated_delta"):
        shape = (*steps, given.head_size) if kind == "channel" else steps
        made["log_decay"] = jnp.asarray(-0.05 * draw.exponential(size=shape), jnp.float32)
    if kind in ("delta", "gated_delta"):
        made["strength"] = jnp.asarray(draw.uniform(size=steps), given.dtype)
    if kind == "memory":
        rates = {"rate": (0, 0.2), "momentum": (0, 0.9), "forget": (0, 0.1)}
        made |= {name: jnp.asarray(draw.uniform(*ends, size=steps), given.dtype) for name, ends in rates.items()}
    return made


def program(kind: str, arrays: dict[str, jax.Array], w: jax.Array, name: str, mode: str) -> Any:
    """The program of a driver, still to be compiled, or that of the library whole; `Skip` where it cannot be run."""
    if name == rival.NAME:
        return rival.Fla(kind, arrays, w, mode)
    drivers = linear.DRIVERS if KINDS[kind] is kernels.linear_attention else delta.DRIVERS
    if name not in drivers:
        raise timed.Skip("no driver of this recurrence")

    def forward(w: jax.Array, *read: jax.Array) -> jax.Array:
        return KINDS[kind](**dict(zip(arrays, read, strict=True)), impl=name)[0]

    def loss(w: jax.Array, *read: jax.Array) -> jax.Array:
        return jnp.sum(forward(w, *read).astype(jnp.float32) * w.astype(jnp.float32))

    whole = forward if mode == "forward" else jax.grad(loss, argnums=tuple(range(1, 1 + len(arrays))))
    try:
        with jax.default_matmul_precision("highest"):  # as the package asks
            return jax.jit(whole, keep_unused=True).lower(w, *arrays.values())
    except ConfigError as error:
        raise timed.Skip(str(error)) from error


def show(row: dict[str, Any]) -> str:
    """A line of the table."""
    return timed.show(row, f"{row['kind']:<14}{row['length']:>6}  {row['mode']:<8} {row['impl']:<14}")


def main(argv: list[str]) -> int:
    """Measure, print and record; returns the exit code."""
    given, _ = parse_command_line(_parser(), argv)
    check(given, NAMES, MOST, ("minutes",))
    runtime.configure()
    over = timed.settled(given, DEFAULTS)
    print(f"{'kind':<14}{'T':>6}  {'mode':<8} {'impl':<14}", end="")
    print(f"{'min ms':>10}{'median':>10}{'ratio':>8}{'MiB':>10}   (ratio to {given.baseline})")
    rows: list[dict[str, Any]] = []
    for kind in given.kinds:
        for length in given.lengths:
            arrays = drawn(kind, length, given)
            w = jnp.asarray(np.random.default_rng(1).normal(size=arrays["v"].shape), given.dtype)
            make, all_of_it = functools.partial(program, kind, arrays, w), (w, *arrays.values())
            programs, said = timed.prepared(given.impl, given.modes, make, all_of_it, over)
            timed.measure(programs, said, given.rounds, given.baseline, over)
            common = {"kind": kind, "length": length, "batch": len(w)}
            new = [{**common, "impl": name, "mode": mode, **found} for (name, mode), found in said.items()]
            new.sort(key=lambda row: MODES.index(row["mode"]))
            rows += new
            for row in new:
                if "skipped" not in row:
                    print(show(row), flush=True)
    results = {"given": recorded(given), "libraries": timed.libraries(LIBRARIES), "recurrences": rows}
    path = record.write(f"recurrences_{jax.default_backend()}", results, given.folder)
    print("not timed:", timed.show_skipped(rows, "kind", "length", "mode"), sep="\n")
    print(f"written: {path}")
    return 0


def _parser() -> Parser:
    made = Parser("python benchmarks/recurrences.py", "Time and memory of recurrences.")
    own = [name for name in DRIVERS if ON_REQUEST not in name]
    made.add_argument("--minutes", type=float, default=5.0, help="after which nothing more is begun")
    made.add_argument("--impl", nargs="+", default=[*own, rival.NAME], help=", ".join(IMPLS))
    made.add_argument("--baseline", default="xla_chunked", help="the one of them that times are told as multiples of")
    made.add_argument("--kinds", nargs="+", default=list(KINDS), help=", ".join(KINDS))
    made.add_argument("--modes", nargs="+", default=list(MODES), help=", ".join(MODES))
    made.add_argument("--lengths", nargs="+", type=int, help="T")
    made.add_argument("--tokens", type=int, help="in a batch, whatever T")
    made.add_argument("--heads", type=int)
    made.add_argument("--head-size", type=int)
    made.add_argument("--dtype", help=", ".join(NAMES["dtype"]))
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--folder", type=pathlib.Path, default=record.RESULTS, help="where the JSON is written")
    return made


if __name__ == "__main__":
    run_entry(main)
