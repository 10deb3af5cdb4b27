"""Evaluate a trained run again: `python -m positionbias.evaluate --workdir RUN [--lengths 1x,2x] ...`."""

from __future__ import annotations

import argparse
import pathlib
import sys
import warnings
from typing import Any

from positionbias import launch, spec
from positionbias.config import cli, resolve
from positionbias.config.schema import MOST_SEQUENCES
from positionbias.files import safe_name
from positionbias.spec import ConfigError


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser(
        "python -m positionbias.evaluate",
        "Evaluate a checkpoint by position: on fresh or stored items, another task, longer sequences, or with positions"
        " changed.",
    )
    made.add_argument("--workdir", required=True, help="run folder")
    made.add_argument("--step", type=int, help="checkpoint to evaluate; default: the newest")
    made.add_argument("--items", type=int, help="fresh sequences a replica and condition; default: as in the config")
    made.add_argument("--task", metavar="SPEC", help="another task of the same vocabulary: other lengths or positions")
    made.add_argument("--conditions", metavar="NAME[,NAME2]", help="conditions to measure; default: all of the task")
    made.add_argument("--lengths", metavar="1x[,2x,...]", help="contexts so many times as long as the task's")
    made.add_argument(
        "--interventions",
        metavar="SPEC[,SPEC2]",
        help="measure each item also with its positions changed, as 'shift(8), swap(0, -1), permute'"
        " (python -m positionbias.list interventions)",
    )
    made.add_argument("--data_dir", metavar="FOLDER", help="items exported by positionbias.tasks.export")
    made.add_argument("--label", help="name of the results in evals/; default: the task's name and the step")
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, _ = cli.parse_command_line(parser(), argv)
    if given.items is not None and not 1 <= given.items <= MOST_SEQUENCES:
        what = f"a whole number from 1 to {MOST_SEQUENCES}"
        raise ConfigError(f"--items: {given.items} is not allowed; allowed: {what}.")
    if given.label is not None:
        check_label(given.label)
    for other in ("task", "items", "conditions", "lengths"):
        if given.data_dir is not None and getattr(given, other) is not None:
            raise ConfigError(f"--data_dir: cannot be given with --{other}, which the stored items settle.")
    if given.data_dir is not None:
        from positionbias.tasks import exported

        given.data_dir = exported.find(cli.folder(given.data_dir, "--data_dir"))
    workdir = cli.folder(given.workdir)
    from positionbias.evaluation.loading import read_config

    config = read_config(workdir)
    launch.set_up(config)
    if given.task is not None:
        _check_task(given.task, config.task)
    return launch.alone(workdir, lambda: _evaluate(workdir, given))


def check_label(label: str) -> None:
    """Refuse a name of results that could be taken for a file of training."""
    resolve.check_safe_name(label, "--label")
    if label.partition(".")[0].isdecimal() or label.endswith((".npz", ".json")):
        raise ConfigError(
            f"--label: {label!r} is not allowed, numbers are training steps and .npz and .json are added;"
            " allowed: a name."
        )


def _evaluate(workdir: pathlib.Path, given: argparse.Namespace) -> None:
    from positionbias.evaluation import again
    from positionbias.evaluation.table import stored_told, table
    from positionbias.reporting.report import write_report

    wanted = again.variants(given.lengths, given.interventions)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: launch.say(str(message), sys.stderr)  # a line, not a place in here
        measurer = again.Measurer(
            workdir,
            wanted,
            step=given.step,
            task=given.task,
            conditions=given.conditions,
            items=given.items,
            data=given.data_dir,
        )
    label = given.label or _label(given, measurer.run.step)
    needed, bases = {variant.base.name for variant in wanted}, dict[str, again.Measured]()
    for count, one in enumerate(measurer.measured(sys.stderr), start=1):
        if one.variant.intervention is None:  # with it a length begins; rows of the last one are not kept
            bases.clear()
        base = bases.get(one.variant.base.name, one)
        if one.variant.name in needed:
            bases[one.variant.name] = one
        name = "_".join([label, *([safe_name(one.variant.name)] if one.variant.name else [])])
        again.write(workdir, name, one, base)
        if one.variant == wanted[0]:
            print(spec.canonical(measurer.run.task))
            if one.stored is not None:
                print(stored_told(one.stored))
            print(table(one.summary))
        else:
            print("\n".join(again.lines(one, base)))
        print(f"results: {workdir / 'evals' / name}.json and .npz")
        if count < len(wanted):
            launch.say(f"evaluating {again.title(wanted[count])} ({count + 1} of {len(wanted)})", sys.stderr)
    print(f"report: {write_report(workdir)}")


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


def _label(given: argparse.Namespace, step: int) -> str:
    """`step000600`, after what is measured where it is not the task trained on, whole."""
    told = [given.task, given.conditions, given.data_dir and given.data_dir.parent.name]
    return "_".join([*(safe_name(text) for text in told if text), f"step{step:06d}"])


if __name__ == "__main__":
    cli.run_entry(main)
