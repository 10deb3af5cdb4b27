"""`python -m positionbias.kernels.explain --mask causal --length 2048`: which driver computes it, and why."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import runtime, spec
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.errors import ConfigError, unknown
from positionbias.kernels.delta_recurrence import ladder as delta
from positionbias.kernels.delta_recurrence.call import posed_delta, posed_memory
from positionbias.kernels.drivers import PLATFORMS, Choice, Driver
from positionbias.kernels.linear_recurrence import ladder as linear
from positionbias.kernels.linear_recurrence.call import posed
from positionbias.kernels.softmax_attention import ladder as attention
from positionbias.kernels.softmax_attention.block_map import classes
from positionbias.kernels.softmax_attention.call import choice
from positionbias.masks.base import EMPTY, FULL
from positionbias.operators.by_kernel import biased
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential

PURPOSE = """\
Print which driver computes an attention or a recurrence, why the others do not, and the tiles an attention visits."""
KERNELS = {
    "attention": attention.DRIVERS,
    "linear_attention": linear.DRIVERS,
    "delta_rule": delta.DRIVERS,
    "linear_memory": delta.DRIVERS,
}
DECAYS = ("head", "key", "value")
DTYPES = ("float32", "bfloat16", "float16")
LONGEST = 65536


def parser() -> Parser:
    """The flags of this entry."""
    made = Parser("python -m positionbias.kernels.explain", PURPOSE)
    made.add_argument("--kernel", default="attention", help=f"{', '.join(KERNELS)}; default: attention")
    made.add_argument("--mask", help="spec of a mask; default: causal")
    made.add_argument("--position", help="spec of a position scheme; default: none")
    made.add_argument("--decays", default="", metavar="NAME,NAME", help=f"of linear_attention: {', '.join(DECAYS)}")
    made.add_argument("--chunk", type=int, help="steps at a time; default: what is fast, or 16 for linear_memory")
    made.add_argument("--length", type=int, default=512, help="queries and keys, or steps; default: 512")
    made.add_argument("--heads", type=int, default=4, help="query heads; default: 4")
    made.add_argument("--key_heads", type=int, help="key heads, if fewer")
    made.add_argument("--head_size", type=int, default=64, help="features of a head; default: 64")
    made.add_argument("--batch_size", type=int, default=1, help="default: 1")
    made.add_argument("--dtype", default="float32", help=f"{', '.join(DTYPES)}; default: float32")
    made.add_argument("--stats", default="", metavar="NAME,NAME", help="statistics asked for")
    made.add_argument("--platform", help=f"{', '.join(PLATFORMS)}; default: that of this machine")
    made.add_argument("--impl", help="a driver by name, instead of the first that can")
    return made


def main(argv: list[str]) -> int:
    """Print the choice; returns the exit code."""
    given, _ = parse_command_line(parser(), argv)
    _check(given)
    runtime.configure()
    if given.kernel != "attention":
        found = _recurrence(given)
        print("\n".join(_drivers(found, KERNELS[given.kernel])))
        return 0
    mask = spec.build("masks", "causal" if given.mask is None else given.mask, "--mask")
    scheme = spec.build("positions", "none" if given.position is None else given.position, "--position")
    dims = Dims(given.heads * given.head_size, given.heads, given.head_size, given.length)
    scheme.check(dims)
    if scheme.multiplies:
        if given.impl is not None:
            raise ConfigError(
                f"--impl: {given.impl!r} reads products of queries and keys, and {spec.canonical(scheme)} has its own;"
                " allowed: to leave it out."
            )
        print(f"{spec.canonical(scheme)} has products of its own: the formula is computed as it stands, by no driver")
        return 0
    params = {name: jnp.zeros(matrix.shape) for name, matrix in scheme.layer_parameters(dims).items()}
    tokens = sequential(given.length)
    score, aux = biased(Placed(scheme, params), tokens, tokens, given.heads)
    groups = given.key_heads or given.heads
    shapes = [(given.batch_size, given.length, heads, given.head_size) for heads in (given.heads, groups, groups)]
    arrays = [jax.ShapeDtypeStruct(shape, given.dtype) for shape in shapes]
    told = {"mask": mask, "tokens": (tokens, tokens), "score": score, "aux": aux, "stats": _names(given.stats)}
    found = choice(*arrays, **told, impl=given.impl, platform=given.platform)
    print("\n".join(described(found)))
    return 0


def described(found: Choice) -> list[str]:
    """The choice in lines: the driver, what every other says, and the tiles."""
    problem = found.problem
    lines = _drivers(found, attention.DRIVERS)
    if problem.dense_because is not None:
        lines.append(f"{problem.dense_because}: it is computed outside, for all pairs at once")
    tiles = classes(problem, problem.block_sizes)
    if isinstance(tiles, np.ndarray):
        seen, full = (tiles != EMPTY).sum(), (tiles == FULL).sum()
        rows, columns = problem.block_sizes
        lines.append(
            f"by tiles of {rows} x {columns}, {seen} of {tiles.size} would be visited, {full} of them without a rule"
        )
    return lines


def _drivers(found: Choice, drivers: Mapping[str, Driver]) -> list[str]:
    lines = [f"on {found.platform}: {found.driver.name}"]
    passed = dict(found.passed_over)
    for name, driver in drivers.items():
        if name != found.driver.name:
            why = passed.get(name) or driver.unsupported_reason(found.problem, found.platform)
            lines.append(f"  {name}: {why or 'could do it, if named'}")
    return lines


def _recurrence(given: argparse.Namespace) -> Choice:
    """The choice for a recurrence of such sizes, from no state."""
    steps = (given.batch_size, given.length, given.heads)
    wide = jax.ShapeDtypeStruct((*steps, given.head_size), given.dtype)
    decays = _names(given.decays)
    found: list[Choice] = []

    def asked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        each, channels = jnp.zeros(steps), jnp.zeros(wide.shape)
        if given.kernel == "delta_rule":
            problem: Any = posed_delta(q, k, v, {"strength": each}, chunk=given.chunk)
        elif given.kernel == "linear_memory":
            gates = {"rate": each, "momentum": each, "forget": each}
            problem = posed_memory(q, k, v, gates, None, None, 16 if given.chunk is None else given.chunk)
        else:
            keys = channels if "key" in decays else each if "head" in decays else None
            problem = posed(q, k, v, keys, channels if "value" in decays else None, chunk=given.chunk)
        choose = linear.choose if given.kernel == "linear_attention" else delta.choose
        found.append(choose(problem, given.impl, given.platform))
        return q

    jax.eval_shape(asked, wide, wide, wide)
    return found[0]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check(given: argparse.Namespace) -> None:
    if given.kernel not in KERNELS:
        raise unknown("--kernel", "kernel", given.kernel, KERNELS)
    others: tuple[str, ...] = ("mask", "position", "key_heads", "stats")
    if given.kernel == "attention":
        others = ("decays", "chunk")
    elif given.kernel != "linear_attention":
        others += ("decays",)
    for name in others:
        if getattr(given, name) != parser().get_default(name):
            raise ConfigError(f"--{name}: {given.kernel} has none; allowed: to leave it out.")
    for name in _names(given.decays):
        if name not in DECAYS:
            raise unknown("--decays", "decay", name, DECAYS)
    if {"head", "key"} <= set(_names(given.decays)):
        raise ConfigError("--decays: head and key are both of keys; allowed: one of them.")
    for name, most in (("length", LONGEST), ("heads", 1024), ("head_size", 1024), ("batch_size", 65536)):
        if not 1 <= getattr(given, name) <= most:
            raise ConfigError(f"--{name}: {getattr(given, name)} is not allowed; allowed: 1 to {most}.")
    if given.key_heads is not None and (given.key_heads < 1 or given.heads % given.key_heads):
        raise ConfigError(f"--key_heads: {given.key_heads} is not allowed; allowed: divisors of {given.heads} heads.")
    for name, options in (("dtype", DTYPES), ("platform", PLATFORMS), ("impl", tuple(KERNELS[given.kernel]))):
        told = getattr(given, name)
        if told is not None and told not in options:
            raise unknown(f"--{name}", name, told, options)


if __name__ == "__main__":
    run_entry(main)
