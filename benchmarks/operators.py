"""How time, memory, work and state of every operator grow with the length.

    python benchmarks/operators.py [--minutes 9] [--operators softmax gated_delta ...] [--lengths 1024 4096 ...]

The operator of one layer alone, causal where it can be, of the sizes of `positionbias.costs`, which BUILD.md's table of
costs is made of, forwards and with the gradients of all that it reads (`train`). The programs of an operator are timed
in turn, round after round, and told are the shortest by the clock, and of the processor (`processor`), which others on
the machine disturb less. A slope is that of a straight line through the logarithms, 1 where something grows as T and 2
where it grows as T^2; `steepest` is the greatest between two neighbouring lengths. Longer lengths are left out, with
the reason, where those before say that a run would take more than `--seconds`, or the compiler that it needs more than
4 GiB; once the minutes are over, so is the rest. Operators by recurrences come first: their goal is a slope of time of
at most 1.05.

Beside the times stand the memory of temporary arrays as the compiler tells it (`memory`, bytes); the multiplications
and additions of matrix products, 2 for each pair of numbers multiplied, those inside loops as often as they run
(`products`; a branch counts as the longest of its kind); what XLA counts (`xla_flops`), which is everything, but every
loop once; and the numbers that the operator says it keeps to go on (`state`). The matrices around an operator, the
same for all that read queries, keys and values, are in none of it.

What the declared state is held against is measured too, of those that are causal, of one head of 4 after 12 tokens: the
rank of the derivatives of the next 64 outputs by all that was read before (`rank`), the numbers that make a difference
later, as far as these outputs tell them apart at all and by more than 1e-5 of the largest. No state may be smaller.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from given import check, recorded

from positionbias import compatibility, costs, runtime, spec
from positionbias.arrays import Tree
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.operators.base import Operator
from positionbias.operators.recurrent import Recurrent
from positionbias.positions.base import Dims
from positionbias.tokens import sequential

GOAL = 1.05  # slope of the time of recurrences
SLOPES = ("milliseconds", "processor", "memory", "products", "state")
LENGTHS = (1024, 4096, 16384, 65536)
MODES = ("forward", "train")
MOST_MEMORY = 4 << 30  # bytes of temporary arrays
PAST, FUTURE = 12, 64  # tokens by which a state is measured
SMALLEST = 1e-5  # of the largest singular value: what float32 still tells
FIRST = 3  # calls by which the length of one is judged
LEAST = 0.02  # seconds that are timed at once: short programs are called so many times
MOST_CALLS = 50
MOST = {"lengths": 1 << 20, "rounds": 1000}


def operators() -> dict[str, Operator]:
    """Every operator, those by recurrences first."""
    found = costs.operators(compatibility.ARGUMENTS)
    return dict(sorted(found.items(), key=lambda item: not isinstance(item[1], Recurrent)))


def problem(operator: Operator, length: int, mode: str) -> tuple[Callable[[Tree], Any], Tree]:
    """A function of the arrays that an operator reads, and the arrays."""
    forward = costs.forward(operator, length)

    def loss(arrays: Tree) -> jax.Array:
        return jnp.mean(jnp.square(forward(arrays)))

    arrays = costs.drawn(operator, costs.dims_of(length))
    return (forward if mode == "forward" else jax.grad(loss)), arrays


def rank(operator: Operator) -> dict[str, Any]:
    """The rank of what later outputs show of the past, and the state that is declared after as many tokens."""
    dims = Dims(width=4, heads=1, head_size=4, length=PAST + FUTURE)
    context = np.arange(dims.length) < PAST
    tokens, arrays = sequential(dims.length, context=context.astype(np.int32)), costs.drawn(operator, dims)
    rows = {name: value for name, value in arrays.items() if name != "params"}

    def later(past: dict[str, jax.Array]) -> jax.Array:
        read = {name: jnp.concatenate([past[name], rows[name][:, PAST:]], axis=1) for name in rows}
        return costs.mixed(operator, tokens, {**read, "params": arrays["params"]})[:, PAST:].reshape(-1)

    quickly = {"xla_backend_optimization_level": 0}  # to compile, for the one time it is called
    found = jax.jit(jax.jacrev(later), compiler_options=quickly)({name: rows[name][:, :PAST] for name in rows})
    parts = [np.asarray(part, np.float64).reshape(len(part), -1) for part in found.values()]
    sizes = np.linalg.svd(np.concatenate(parts, axis=1), compute_uv=False)
    kept = operator.state_size(dataclasses.replace(dims, length=PAST))
    return {"tokens": PAST, "declared": kept, "rank": int((sizes > SMALLEST * sizes[0]).sum())}


def slope(lengths: Sequence[int], values: Sequence[float | None]) -> float | None:
    """Of the line through the logarithms; None where there is no line, or nothing at some length."""
    if len(values) < 2 or not all(value and value > 0 for value in values):
        return None
    return float(np.polyfit(np.log(lengths), np.log(np.asarray(values, np.float64)), 1)[0])


class Measured:
    """The programs of one operator in one mode, length after length."""

    def __init__(self, name: str, operator: Operator, mode: str, given: argparse.Namespace) -> None:
        self.name, self.operator, self.mode, self.given = name, operator, mode, given
        self.rows: list[dict[str, Any]] = []
        self.programs: list[tuple[Any, Tree, int]] = []  # compiled, its arrays, how often it is called at once
        self.left_out: dict[int, str] = {}

    def prepare(self, over: Callable[[], bool]) -> None:
        """Compile what can be run in time."""
        for length in self.given.lengths:
            reason = "the minutes are over" if over() else self._too_long(length)
            reason = reason or self._compile(length)
            if reason:
                later = [one for one in self.given.lengths if one >= length]
                self.left_out = dict.fromkeys(later, reason)
                return

    def _too_long(self, length: int) -> str:
        if not self.rows:
            return ""
        first = [(row["length"], row["first"]) for row in self.rows[-2:]]
        growth = 1.0  # of a first length nothing is known
        if len(first) == 2:
            (before, earlier), (last, later) = first
            growth = min(
                max(math.log(later / earlier, last / before), 1.0), 2.0
            )  # one of the two may have been unlucky
        seconds = first[-1][1] * (length / first[-1][0]) ** growth
        return f"{length} tokens would take about {seconds:.0f} s a run" if seconds > self.given.seconds else ""

    def _compile(self, length: int) -> str:
        function, arrays = problem(self.operator, length, self.mode)
        started = time.perf_counter()
        traced = jax.jit(function).trace(arrays)
        compiled = traced.lower().compile()
        seconds = time.perf_counter() - started
        memory = int(compiled.memory_analysis().temp_size_in_bytes)
        if memory > MOST_MEMORY:
            return f"{length} tokens take {memory / 2**30:.1f} GiB"
        row = {
            "length": length,
            "seconds_to_compile": round(seconds, 2),
            "memory": memory,
            "products": costs.products(traced.jaxpr),
            "xla_flops": compiled.cost_analysis().get("flops"),
            "state": self.operator.state_size(costs.dims_of(length)),
        }
        jax.block_until_ready(compiled(arrays))
        row["first"] = min(min(timed(compiled, arrays, 1)) for _ in range(FIRST))
        self.rows.append(row)
        self.programs.append((compiled, arrays, max(1, min(MOST_CALLS, round(LEAST / row["first"])))))
        return ""

    def round(self) -> None:
        """Time every length once."""
        for row, (compiled, arrays, calls) in zip(self.rows, self.programs, strict=True):
            row.setdefault("times", []).append(timed(compiled, arrays, calls))

    def result(self) -> dict[str, Any]:
        """What is written of it."""
        for row in self.rows:
            clock, processor = zip(*row.pop("times"), strict=True)
            row |= {"milliseconds": 1e3 * min(clock), "processor": 1e3 * min(processor), "rounds": len(clock)}
            del row["first"]
            row["products"] = None if math.isnan(row["products"]) else row["products"]
        lengths = [row["length"] for row in self.rows]
        columns = {name: [row[name] for row in self.rows] for name in SLOPES}
        pairs = itertools.pairwise(zip(lengths, columns["milliseconds"], strict=True))
        found = {f"slope_of_{name}": slope(lengths, column) for name, column in columns.items()}
        steepest = [slope((a[0], b[0]), (a[1], b[1])) for a, b in pairs]
        recurrent = isinstance(self.operator, Recurrent)
        return {
            "operator": spec.canonical(self.operator),
            "recurrent": recurrent,
            "mode": self.mode,
            **found,
            "steepest": max((one for one in steepest if one is not None), default=None),
            "lengths": self.rows,
            "left_out": {str(length): reason for length, reason in self.left_out.items()},
        }


def timed(compiled: Any, arrays: Tree, calls: int) -> tuple[float, float]:
    """Seconds of one of so many calls by the clock, and of the processor."""
    busy, started = time.process_time(), time.perf_counter()
    for _ in range(calls):
        made = compiled(arrays)
    jax.block_until_ready(made)
    return (time.perf_counter() - started) / calls, (time.process_time() - busy) / calls


def show(found: dict[str, Any]) -> str:
    """A line of the table."""
    rows = found["lengths"]
    if not rows:
        return f"{found['operator']:<38} {found['mode']:<8} {next(iter(found['left_out'].values()))}"
    first, last = rows[0], rows[-1]
    slopes = [found[f"slope_of_{name}"] for name in SLOPES]
    told = "".join(f"{'-' if one is None else f'{one:.2f}':>9}" for one in (slopes[0], found["steepest"], *slopes[1:]))
    return (
        f"{found['operator']:<38} {found['mode']:<8}{last['length']:>6}{first['milliseconds']:>10.2f}"
        f"{last['milliseconds']:>10.1f}{told}{last['memory'] / 2**20:>9.0f}{last['state']:>10}"
    )


def _parser(known: Sequence[str]) -> Parser:
    made = Parser("python benchmarks/operators.py", "How the cost of operators grows with the length.")
    made.add_argument("--minutes", type=float, default=9.0, help="after which nothing more is begun")
    made.add_argument("--seconds", type=float, default=3.0, help="the longest run that is begun")
    made.add_argument("--operators", nargs="+", default=list(known), help=", ".join(known))
    made.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    made.add_argument("--modes", nargs="+", default=list(MODES), help=", ".join(MODES))
    made.add_argument("--rounds", type=int, default=4)
    made.add_argument("--folder", type=pathlib.Path, default=record.RESULTS, help="where the JSON is written")
    return made


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    known = operators()
    given, _ = parse_command_line(_parser(list(known)), argv)
    check(given, {"operators": known, "modes": MODES}, MOST, ("minutes", "seconds"))
    runtime.configure()
    given.lengths.sort()
    stop = time.perf_counter() + 60 * given.minutes
    print(f"{'operator':<38} {'mode':<8}{'T':>6}{'ms first':>10}{'ms at T':>10}{'slope':>9}{'steepest':>9}", end="")
    print(f"{'processor':>10}{'memory':>8}{'products':>9}{'state':>9}{'MiB':>9}{'state':>10}")
    results, states = [], {}
    for name in given.operators:
        if "causal_self" in known[name].patterns and time.perf_counter() < stop:
            states[name] = rank(known[name])
        measured = [Measured(name, known[name], mode, given) for mode in given.modes]
        for one in measured:
            one.prepare(lambda: time.perf_counter() > stop)
        for _ in range(given.rounds):
            for one in measured:
                one.round()
        for one in measured:
            results.append(one.result())
            print(show(results[-1]), flush=True)
    steep = [
        f"{one['operator']} {one['mode']} {one['slope_of_milliseconds']:.2f}"
        for one in results
        if one["recurrent"] and (one["slope_of_milliseconds"] or 0) > GOAL
    ]
    print(f"recurrences with a slope of time above {GOAL}: {', '.join(steep) or 'none'}")
    print(f"state declared after {PAST} tokens, one head of 4, and the rank of what {FUTURE} later outputs show of it:")
    print("  " + ", ".join(f"{name} {one['declared']} {one['rank']}" for name, one in states.items()))
    path = record.write(
        "operators", {"given": recorded(given), "goal": GOAL, "operators": results, "states": states}, given.folder
    )
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run_entry(main)
