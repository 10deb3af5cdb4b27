"""Evaluate a trained run again: `python -m positionbias.evaluate --workdir RUN [--step N] [--task SPEC] ...`."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import warnings
from typing import Any

from positionbias import launch, spec
from positionbias.config import cli, resolve
from positionbias.files import write_json
from positionbias.spec import ConfigError

STREAM = "evaluation/again"  # one for all, so that two evaluations of one task see the same items


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser(
        "python -m positionbias.evaluate", "Evaluate a checkpoint by position, on fresh items or on another task."
    )
    made.add_argument("--workdir", required=True, help="run folder")
    made.add_argument("--step", type=int, help="checkpoint to evaluate; default: the newest")
    made.add_argument("--items", type=int, help="fresh sequences a replica and condition; default: as in the config")
    made.add_argument("--task", metavar="SPEC", help="another task of the same vocabulary: other lengths or positions")
    made.add_argument("--label", help="name of the results in evals/; default: the task's name and the step")
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, _ = cli.parse_command_line(parser(), argv)
    if given.items is not None and given.items < 1:
        raise ConfigError(f"--items: {given.items} is not allowed; allowed: a whole number from 1.")
    if given.label is not None:
        resolve.check_safe_name(given.label, "--label")
        if given.label.partition(".")[0].isdecimal() or given.label.endswith((".npz", ".json")):
            raise ConfigError(
                f"--label: {given.label!r} is not allowed, numbers are training steps and .npz and .json are added;"
                " allowed: a name."
            )
    workdir = launch.folder(given.workdir)
    from positionbias.evaluation.loading import read_config
    from positionbias.training.run_folder import FolderInUse, locked

    config = read_config(workdir)
    launch.set_up(config)
    if given.task is not None:
        _check_task(given.task, config.task)
    try:
        with locked(workdir):  # so that no training prunes the checkpoint or cuts the results meanwhile
            _evaluate(workdir, given)
    except FolderInUse as error:
        print(f"error: {error}", file=sys.stderr)
        return launch.IN_USE
    return 0


def _evaluate(workdir: pathlib.Path, given: argparse.Namespace) -> None:
    import jax

    from positionbias.evaluation.by_position import Evaluator, theory_curves
    from positionbias.evaluation.loading import load
    from positionbias.evaluation.rows import write_rows
    from positionbias.evaluation.summary import summarise, table
    from positionbias.training import auto

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: launch.say(str(message), sys.stderr)  # a line, not a place in here
        try:
            run = load(workdir, given.step, "all", given.task)
        except ConfigError as error:
            told = str(error)  # names the field of a config, which the flag has replaced
            raise ConfigError(f"--{told}" if given.task is not None and told.startswith("task: ") else told) from None
    # On the devices that are here, which need not be as many as it was trained on.
    train = dataclasses.replace(run.config.train, devices="auto")
    here = dataclasses.replace(run.experiment, config=dataclasses.replace(run.config, train=train))
    layout = auto.resolve(here, jax.default_backend(), len(jax.devices())).layout
    evaluator = Evaluator(run.experiment, layout, run.keys, STREAM, given.items)
    rows = evaluator.rows(layout.place(run.weights))
    label = given.label or _label(given.task, run.step)
    write_rows(workdir / "evals" / f"{label}.npz", rows)
    train, theory = run.config.train, theory_curves(run.experiment)
    summary = summarise(rows, steps=run.step, of=train.steps, varied=train.vary, theory=theory)
    write_json(workdir / "evals" / f"{label}.json", {**summary, "task": run.config.task})
    print(run.config.task)
    print(table(summary))
    print(f"results: {workdir / 'evals' / label}.json and .npz")


def _check_task(text: str, trained: str) -> None:
    """Refuse a task whose inputs or targets have other sizes than those of the task trained on."""
    new, old = spec.build("tasks", text, "--task"), spec.build("tasks", trained, "task")
    if (new.input, new.output) != (old.input, old.output):
        raise ConfigError(
            f"--task: {text} has {_sizes(new)}, but the run was trained with {_sizes(old)}; allowed: the sizes trained"
            f" with, as in {trained}."
        )


def _sizes(task: Any) -> str:
    read, said = (
        f"a vocabulary of {s.size} tokens" if s.kind == "tokens" else f"vectors of {s.size} features"
        for s in (task.input, task.output)
    )
    return read if read == said else f"{read} as inputs and {said} as targets"


def _label(task: str | None, step: int) -> str:
    """`step000600`, after the task's text where it is not the one trained on."""
    safe = "" if task is None else "".join(c if c.isalnum() or c in "-." else "_" for c in task).strip("_") + "_"
    return f"{safe}step{step:06d}"


if __name__ == "__main__":
    cli.run_entry(main)
