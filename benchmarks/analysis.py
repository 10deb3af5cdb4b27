"""What asking a model costs: recording beside a plain forward pass, patching as one program beside loops.

    python benchmarks/analysis.py [--minutes 9] [--config configs/tour.py] [--items 16] [--lengths 16 32]

The model is that of the config on associative recall of each length, as it is drawn: what it computes costs the same
before training. `record` is a forward pass that returns sites too, all there are (`*`) or the streams, over one that
returns outputs alone (`ratio`, where 1 costs nothing). `patching` puts the clean stream, output of attention and output
of the MLP of every layer, one row at a time, into the run on a corrupted prompt, and tells the log-odds of the right
answer each time: as one program over all sites and rows (`map`, as the package's analysis does it, and `vmap`), one
compiled call each (`calls`), and calls that are not compiled (`eager`), of which the first few stand for all. There
`ratio` is the time over that of `map`.

Outputs with and without recording, and effects of every patch, have to agree before anything is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import record
import timed
from given import check, recorded

from positionbias import launch, load
from positionbias.analysis.base import at_layer, sites
from positionbias.analysis.pairs import corrupted
from positionbias.config import cli, resolve
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.errors import ConfigError
from positionbias.evaluation.loading import LoadedRun
from positionbias.models import edits
from positionbias.training.loop import train

MOST = {"items": 4096, "rounds": 1000, "lengths": 512}
SHORTEST = 8  # of the sequences, three pairs and a question
CLOSE = 1e-4  # of outputs and effects, absolute, in logits of about 1
PATCHED = ("layers.*.stream", "layers.*.attention.output", "layers.*.mlp.output")
RECORDS = {"forward": (), "all sites": ("*",), "streams": ("*.stream",)}
PATCHES = ("map", "vmap", "calls", "eager")
FEW = 8  # patches of a turn of `eager`


class Called:
    """A function of no arguments that starts what it is to compute."""

    memory = None

    def __init__(self, call: Callable[[], Any], share: float = 1.0) -> None:
        self.call, self.share = call, share  # of the whole that a call is

    def wait(self, made: Any) -> None:
        """Until it is there."""
        jax.block_until_ready(made)


def drawn(config_file: str, length: int, folder: pathlib.Path) -> LoadedRun:
    """A model of the config on sequences of this length, as it is drawn."""
    pairs = 3 * length // 8
    task = f"associative_recall(pairs={pairs}, keys={max(16, pairs)}, values=16, delays={length - 2 * pairs}, shift=0)"
    few = {"evaluation.items": 2, "evaluation.influence_items": 1, "train.replicas": 1, "train.steps": 0}
    config = resolve.resolve(cli.load_config(config_file, {"task": task, "train.log_every": 1, **few}))
    launch.set_up(config)
    train(config, folder, ["benchmark"], lambda line: None)
    return load(str(folder))


class Given(NamedTuple):
    """What are arguments of a compiled function, not constants of it."""

    weights: Any
    inputs: jax.Array  # [B, T]
    changed: jax.Array  # corrupted


def applied(run: LoadedRun, batch: Any, given: Given, inputs: jax.Array, record_: Any = (), edit: Any = None) -> Any:
    """Outputs and sites of the batch with these inputs; what its tokens tell stays known when this is compiled."""
    return dataclasses.replace(run, weights=given.weights).apply(batch._replace(inputs=inputs), record_, edit)


def recording(run: LoadedRun, batch: Any) -> dict[str, Called]:
    """A forward pass, and those that record."""
    made, given = {}, Given(run.weights, batch.inputs, batch.inputs)
    for name, record_ in RECORDS.items():
        whole = jax.jit(lambda given, record_=record_: applied(run, batch, given, given.inputs, record_))
        made[name] = Called(lambda whole=whole: whole(given))
    plain = np.asarray(made["forward"].call()[0])
    for name, one in made.items():
        _agree(f"outputs of {name}", np.asarray(one.call()[0]), plain)
    return made


def patching(run: LoadedRun, batch: Any) -> tuple[dict[str, Called], int]:
    """Every way to patch, and how many patches there are."""
    layers, length = list(range(run.config.model.layers)), run.task.length(run.task.conditions()[0])
    names = [name for site in PATCHED for name in sites(layers, site)]
    given = Given(run.weights, batch.inputs, corrupted(batch))
    rows, each = run.answer_rows(batch)[:, -1], jnp.arange(len(batch.query))
    right = batch.targets[each, batch.query[:, -1]]

    def clean(given: Given) -> list[jax.Array]:
        found = applied(run, batch, given, given.inputs, names)[1]
        return [found[name] for name in names]

    def patched(given: Given, values: list[jax.Array], at: jax.Array) -> jax.Array:
        """The effect of patch number `at`: a site, and a row."""
        change = at_layer(names, at // length, lambda i, row: edits.replace(values[i], rows=row), at % length)
        outputs = applied(run, batch, given, given.changed, (), change)[0]
        said = jax.nn.log_softmax(outputs[each, rows])[each, right]
        return jnp.mean(said - jnp.log1p(-jnp.exp(said)))

    count = len(names) * length
    numbers, record_clean, one = jnp.arange(count), jax.jit(clean), jax.jit(patched)

    def by_map(given: Given) -> jax.Array:
        values = clean(given)
        return jax.lax.map(lambda at: patched(given, values, at), numbers)

    def by_vmap(given: Given) -> jax.Array:
        values = clean(given)
        return jax.vmap(lambda at: patched(given, values, at))(numbers)

    def eager(some: int) -> list[jax.Array]:
        values = clean(given)
        return [patched(given, values, jnp.asarray(at)) for at in range(0, count, -(-count // some))]

    def calls() -> list[jax.Array]:
        values = record_clean(given)
        return [one(given, values, at) for at in range(count)]

    mapped, vmapped = jax.jit(by_map), jax.jit(by_vmap)
    few = min(FEW, count)
    made = {
        "map": Called(lambda: mapped(given)),
        "vmap": Called(lambda: vmapped(given)),
        "calls": Called(calls),
        "eager": Called(lambda: eager(few), share=len(range(0, count, -(-count // few))) / count),
    }
    wanted = np.asarray(made["map"].call())
    for name in ("vmap", "calls"):
        _agree(f"effects by {name}", np.asarray(made[name].call()), wanted)
    _agree("effects by eager", np.asarray(made["eager"].call()), wanted[:: -(-count // few)])
    return made, count


def _agree(what: str, found: np.ndarray, wanted: np.ndarray) -> None:
    if not (apart := float(np.abs(found - wanted).max())) <= CLOSE:
        raise ValueError(f"{what} differ by {apart:.2g}, more than {CLOSE:.0e}")


def measure(made: dict[str, Called], baseline: str, given: argparse.Namespace, over: Any) -> list[dict[str, Any]]:
    """Rows of what has been made, timed in turn."""
    programs = {(name, "whole"): one for name, one in made.items()}
    said: timed.Said = {key: {} for key in programs}
    timed.measure(programs, said, given.rounds, baseline, over)
    rows = []
    for (name, _), found in said.items():
        share = made[name].share
        found = timed.each(found, share)
        if "ratio" in found:
            found |= {which: found[which] / share for which in ("ratio", "processor_ratio")}
            found["spread"] = {which: ratio / share for which, ratio in found["spread"].items()}
        rows.append({"impl": name, **found})
    return rows


def show(what: str, length: int, row: dict[str, Any]) -> str:
    """A line of the table."""
    begin = f"{what:<10}{length:>5}  {row['impl']:<12}"
    if "ratio" not in row:
        return f"{begin}{row.get('error', 'the minutes are over')}"[:150].splitlines()[0]
    spread = row["spread"]
    times = f"{row['milliseconds']:11.3f}{row['processor']:11.3f}{row['ratio']:9.2f}{row['processor_ratio']:11.2f}"
    return f"{begin}{times}   {spread['least']:.2f} to {spread['most']:.2f}"


def main(argv: list[str]) -> int:
    """Measure, print and record; returns the exit code."""
    given, _ = parse_command_line(_parser(), argv)
    check(given, {}, MOST, ("minutes",))
    for length in given.lengths:
        if length < SHORTEST:
            raise ConfigError(f"--lengths: {length} is not allowed; allowed: {SHORTEST} to {MOST['lengths']}.")
    over = timed.ends(given.minutes)
    found: dict[str, list[dict[str, Any]]] = {"record": [], "patching": []}
    left = []
    print(f"{'what':<10}{'T':>5}  {'how':<12}{'ms':>11}{'processor':>11}{'ratio':>9}{'processor':>11}   rounds")
    with tempfile.TemporaryDirectory() as home:
        for length in given.lengths:
            if over():
                left.append(length)
                continue
            run = drawn(given.config, length, pathlib.Path(home, str(length)))
            batch = run.sample(given.items)
            patches, count = patching(run, batch)
            told = {"length": length, "items": given.items}
            for what, made, base in (("record", recording(run, batch), "forward"), ("patching", patches, "map")):
                more = {"patches": count} if what == "patching" else {}
                for row in measure(made, base, given, over):
                    found[what].append({**told, **more, **row})
                    print(show(what, length, row), flush=True)
    path = record.write(
        f"analysis_{jax.default_backend()}", {"given": recorded(given), **found, "left_out": left}, given.folder
    )
    print("left out:", ", ".join(map(str, left)) or "nothing")
    print(f"written: {path}")
    return 0


def _parser() -> Parser:
    made = Parser("python benchmarks/analysis.py", "Recording and patching beside what they are made of.")
    made.add_argument("--minutes", type=float, default=9.0, help="after which nothing more is begun")
    made.add_argument("--config", default="configs/tour.py", help="whose model")
    made.add_argument("--items", type=int, default=16)
    made.add_argument("--lengths", nargs="+", type=int, default=[16, 32])
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--folder", type=pathlib.Path, default=record.RESULTS, help="where the JSON is written")
    return made


if __name__ == "__main__":
    run_entry(main)
