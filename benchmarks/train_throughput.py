"""Our training loop beside the loops that a user would write without this package, on the same model and data.

    taskset -c 0 python benchmarks/train_throughput.py [--minutes 9] [--tasks ...] [--shapes 64x128x64 ...]

The model is the default decoder: 2 layers, 4 heads, learned positions, AdamW at a constant rate, one replica. Rivals
are the same in plain PyTorch, eager and under `torch.compile` (`rival_torch.py`; skipped where PyTorch is not
installed), and in plain Flax, one jitted call a step (`rival_flax.py`). A shape is batch x length x width.

Before anything is timed a rival gets our parameters, and has to find our gradient of the first batch and our losses of
the first steps; else it is told as an error. Then all take turns, round after round, K steps a turn. Ours draws its
batches on the device and tells accuracy and the norm of the gradient; rivals get the same batches drawn beforehand and
tell the loss alone, which favours them. The Flax loop runs under the flags of XLA that the package sets
(`runtime.sound_products`, `runtime.step_options`).

Told are the shortest time of a step by the clock and of the processor, which others on the machine disturb less, and
`ratio`: the rival's time over ours, above 1 where ours is faster; `spread` is that of single rounds. On one core, as
with `taskset`, the goals are ratios to the best rival. Shapes come in the order of the goals; what the minutes do not
suffice for is left out, and told.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import prepare
import record
import timed
from flax import nnx
from given import check, recorded

from positionbias import runtime
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.errors import ConfigError
from positionbias.replicas import replica_key, stream
from positionbias.training.program import Program, fetch

OURS, MODE = "positionbias", "train"
RIVALS = ("torch", "torch_compiled", "flax")
# By shape, the least ratio to the best rival on one core; then shapes without a goal, wide and long ones.
GOALS = {(64, 128, 64): 1.0, (128, 16, 64): 1.3, (8, 32, 64): 1.3, (64, 32, 32): 1.3}
MORE = ((8, 256, 128), (4, 128, 512), (16, 32, 256), (2, 2048, 32))
TASKS = {
    "associative_recall": lambda length: (
        f"associative_recall(pairs={3 * length // 8}, keys={max(64, 3 * length // 8)}, values=64,"
        f" delays={length - 2 * (3 * length // 8)}, queries={length // 8}, shift=0)"
    ),
    "inverse_permutation": lambda length: f"inverse_permutation(n={length // 2}, alphabet=64)",
}
NAMES = {"tasks": TASKS, "impl": RIVALS}
MOST = {"rounds": 1000}
LARGEST = {"batch": 4096, "length": 2048, "width": 4096}
CHECKED = 4  # steps of which the losses are compared
CLOSE = {"gradient": 1e-4, "losses": 1e-4}  # relative differences in float32
TURN = 2e9  # multiplications of a forward pass in a turn, about half a second where it has more than the least steps
LEAST_STEPS, MOST_STEPS = 16, 64  # of a turn, one call of ours; a run has a hundred in a call

Shape = tuple[int, int, int]


class Batches(NamedTuple):
    """The first K batches."""

    inputs: np.ndarray  # [K, B, T]
    targets: np.ndarray
    weights: np.ndarray


class Ours:
    """Our loop, K steps a call."""

    def __init__(self, program: Program) -> None:
        self._compiled, self._step = program.compile(), 0
        self._size, self._state = program.auto.steps_per_dispatch, self._compiled.fresh()
        self.memory = self._compiled.bytes

    def call(self) -> jax.Array:
        """The next K steps; their metrics."""
        self._state, metrics = self._compiled.advance(self._state, self._step)
        self._step += self._size
        return metrics

    def wait(self, made: jax.Array) -> np.ndarray:
        """The losses, once they are there."""
        return fetch(made)["loss"][0]

    def state(self) -> dict[str, Any]:
        """Of the one replica, as it is now."""
        return jax.tree.map(lambda x: np.asarray(x)[0], self._compiled.unpack(self._state))


def program_of(task: str, shape: Shape) -> Program:
    """Our program of a task and shape."""
    batch, length, width = shape
    work = batch * length * 2 * (12 * width + length) * width
    raw = {
        "name": "throughput",
        "task": TASKS[task](length),
        "model": {"layers": 2, "heads": 4, "width": width},
        "optimizer": {"name": "adamw", "schedule": "constant"},
        "train": {
            "replicas": 1,
            "batch_size": batch,
            "steps_per_dispatch": int(min(max(TURN // work, LEAST_STEPS), MOST_STEPS)),
        },
    }
    raw["train"]["steps"] = raw["train"]["log_every"] = raw["train"]["steps_per_dispatch"]
    return prepare.program(raw)


def drawn(program: Program) -> Batches:
    """The batches of the first K steps, as the program draws them."""
    experiment, size = program.experiment, program.experiment.config.train.batch_size
    task, own = experiment.task, jax.tree.map(lambda x: x[0], program.replicas())

    def one(index: jax.Array) -> Batches:
        key = jax.random.fold_in(stream(replica_key(own["seeds"]), "data"), index)
        batch = experiment.trained(key, task.batch(key, task.conditions()[0], size, own["world"]))
        return Batches(batch.inputs, batch.targets, batch.weights)

    indices = np.arange(program.auto.steps_per_dispatch)
    return jax.device_get(jax.jit(lambda: jax.lax.map(one, indices))())


def by_name(tree: Any) -> dict[str, np.ndarray]:
    """Parameters, or what is like them, by dotted names."""
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(tree)}


class First(NamedTuple):
    """What ours makes of the first steps."""

    params: dict[str, np.ndarray]  # that it begins with
    gradient: dict[str, np.ndarray]  # of the first batch
    losses: np.ndarray


def first_steps(program: Program) -> First:
    """By the same program, one step a call, whose first moments tell the gradient after one."""
    ours = Ours(dataclasses.replace(program, auto=dataclasses.replace(program.auto, steps_per_dispatch=1)))
    params, losses = by_name(ours.state()["params"]), [ours.wait(ours.call())]
    moments = by_name(optax.tree.get(ours.state()["optimizer"], "mu"))
    rule = 1 - 0.9  # of AdamW's first moment, which starts at 0
    losses += [ours.wait(ours.call()) for _ in range(CHECKED - 1)]
    return First(params, {name: x / rule for name, x in moments.items()}, np.concatenate(losses))


def rival(name: str, program: Program, first: First, batches: Batches) -> Any:
    """A rival that computes what ours does; raises Skip where it is not installed, ValueError where it does not."""
    config = program.experiment.config
    if name == "flax":
        from rival_flax import Flax

        made: Any = Flax(config, first.params, batches)
    else:
        if importlib.util.find_spec("torch") is None:
            raise timed.Skip("torch is not installed")
        from rival_torch import Torch

        made = Torch(config, first.params, batches, compiles=name == "torch_compiled")
    gradient, losses = made.gradient(), made.wait(made.call())[:CHECKED]
    made.differences = {
        "gradient": max(apart(gradient[name], ours) for name, ours in first.gradient.items()),
        "losses": apart(losses, first.losses),
    }
    for what, limit in CLOSE.items():
        if not made.differences[what] <= limit:
            raise ValueError(f"{what} differ from ours by {made.differences[what]:.2g}, more than {limit:.0e}")
    return made


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """The norm of the difference, as a share of that of what is wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def measure(task: str, shape: Shape, given: argparse.Namespace, over: Any) -> dict[str, Any]:
    """Every loop on one task and shape."""
    program = program_of(task, shape)
    batches, first = drawn(program), first_steps(program)

    def make(name: str, mode: str) -> Any:
        return Ours(program) if name == OURS else rival(name, program, first, batches)

    programs, said = timed.prepared([OURS, *given.impl], [MODE], make, (), over)
    timed.measure(programs, said, given.rounds, OURS, over)
    size, loops = program.auto.steps_per_dispatch, []
    for (name, _), found in said.items():
        differences = getattr(programs.get((name, MODE)), "differences", None)
        loops.append({"impl": name, **timed.each(found, size), "differences": differences})
    auto = program.auto.describe()
    row = {"task": task, **dict(zip(LARGEST, shape, strict=True)), "steps_a_turn": size, "auto": auto, "loops": loops}
    others = [loop for loop in loops[1:] if "ratio" in loop]
    if others and "ratio" in loops[0]:
        for ratio in ("ratio", "processor_ratio"):
            best = min(others, key=lambda loop: loop[ratio])
            row[f"{ratio}_to_best"] = {"rival": best["impl"], "ratio": best[ratio]}
    row["goal"] = GOALS.get(shape) if runtime.cores() == 1 else None
    return row


def show(row: dict[str, Any]) -> str:
    """The lines of a table."""
    begin, lines = f"{row['task']:<21}{row['batch']}x{row['length']}x{row['width']}", []
    for loop in row["loops"]:
        line = f"{begin:<34}{loop['impl']:<16}"
        if "ratio" not in loop:
            lines.append(f"{line}{loop.get('skipped') or loop.get('error')}"[:150].splitlines()[0])
            continue
        spread = loop["spread"]
        lines.append(
            f"{line}{loop['milliseconds']:9.2f}{loop['processor']:11.2f}{loop['ratio']:8.2f}"
            f"{loop['processor_ratio']:11.2f}   {spread['least']:.2f} to {spread['most']:.2f}"
        )
    return "\n".join(lines)


def shape_of(text: str) -> Shape:
    """`64x128x64` as numbers; raises ConfigError."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", text)
    if found is None:
        raise ConfigError(f"--shapes: {text!r} is not allowed; allowed: batch x length x width, such as 64x128x64.")
    batch, length, width = (int(number) for number in found.groups())
    fits = {"batch": batch >= 1, "length": length >= 16 and length % 2 == 0, "width": width >= 4 and width % 4 == 0}
    says = {"batch": "1", "length": "an even number from 16", "width": "a multiple of 4 from 4"}
    for (name, most), value in zip(LARGEST.items(), (batch, length, width), strict=True):
        if not fits[name] or value > most:
            raise ConfigError(f"--shapes: a {name} of {value} is not allowed; allowed: {says[name]} to {most}.")
    return batch, length, width


def main(argv: list[str]) -> int:
    """Measure, print and record; returns the exit code, 1 if a rival computed something else."""
    given, _ = parse_command_line(_parser(), argv)
    check(given, NAMES, MOST, ("minutes",))
    shapes = [shape_of(text) for text in given.shapes]
    over = timed.ends(given.minutes)
    rows: list[dict[str, Any]] = []
    left: list[str] = []
    print(f"{'task':<21}{'B x T x D':<13}{'loop':<16}{'ms':>9}{'processor':>11}{'ratio':>8}{'processor':>11}   rounds")
    path = None
    for shape, task in [(shape, task) for shape in shapes for task in given.tasks]:
        if over():
            left.append(f"{task} {'x'.join(map(str, shape))}")
        else:
            rows.append(measure(task, shape, given, over))
            print(show(rows[-1]), flush=True)
        path = record.write(f"train_throughput_{jax.default_backend()}", _results(given, rows, left), given.folder)
    print("left out:", ", ".join(left) or "nothing")
    print(f"written: {path}")
    return int(any("error" in loop for row in rows for loop in row["loops"]))


def _results(given: argparse.Namespace, rows: list[dict[str, Any]], left: list[str]) -> dict[str, Any]:
    return {"given": recorded(given), "libraries": timed.libraries(("torch",)), "shapes": rows, "left_out": left}


def _parser() -> Parser:
    made = Parser("python benchmarks/train_throughput.py", "Training steps beside those of other loops.")
    made.add_argument("--minutes", type=float, default=9.0, help="after which nothing more is begun")
    made.add_argument("--impl", nargs="*", default=list(RIVALS), help=", ".join(RIVALS))
    made.add_argument("--tasks", nargs="+", default=list(TASKS), help=", ".join(TASKS))
    shapes = ["x".join(map(str, shape)) for shape in (*GOALS, *MORE)]
    made.add_argument("--shapes", nargs="+", default=shapes, help="batch x length x width")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--folder", type=pathlib.Path, default=record.RESULTS, help="where the JSON is written")
    return made


if __name__ == "__main__":
    run_entry(main)
