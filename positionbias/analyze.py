"""Ask a run why it does what it does: `python -m positionbias.analyze --workdir RUN --analyses 'rollout, ...'`."""

from __future__ import annotations

import argparse
import pathlib

from positionbias import launch, spec
from positionbias.config import cli
from positionbias.config.schema import MOST_SEQUENCES
from positionbias.spec import ConfigError


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser(
        "python -m positionbias.analyze",
        "Analyses of a checkpoint, of all replicas, trained and as they were drawn. Those that are there are kept.",
    )
    made.add_argument("--workdir", required=True, help="run folder")
    made.add_argument(
        "--analyses",
        required=True,
        metavar="SPEC[,SPEC2]",
        help="as 'rollout, head_gating(weight=0.1)' (python -m positionbias.list analyses)",
    )
    made.add_argument("--step", metavar="all|N[,M]", help="checkpoints to analyse; default: the newest")
    made.add_argument("--condition", metavar="NAME", help="of the items; default: the one trained on")
    made.add_argument("--replicas", default="all", metavar="I[,J]", help="which of the run's, from 0; default: all")
    made.add_argument("--items", type=int, help="items a replica; default: evaluation.influence_items of the config")
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, _ = cli.parse_command_line(parser(), argv)
    if given.items is not None and not 1 <= given.items <= MOST_SEQUENCES:
        raise ConfigError(f"--items: {given.items} is not allowed; allowed: a whole number from 1 to {MOST_SEQUENCES}.")
    workdir = cli.folder(given.workdir)
    from positionbias.evaluation.loading import read_config

    launch.set_up(read_config(workdir))
    return launch.alone(workdir, lambda: _analyse(workdir, given))


def _analyse(workdir: pathlib.Path, given: argparse.Namespace) -> None:
    from positionbias.analysis import run, table
    from positionbias.reporting.report import write_report

    wanted, replicas = run.parsed(given.analyses), run.numbered(given.replicas)
    for step in run.stepped(workdir, given.step):
        asker = run.Asker(workdir, wanted, step=step, condition=given.condition, items=given.items, replicas=replicas)
        steps, items = asker.run.config.train.steps, f"{asker.items} items a replica"
        launch.say(f"step {asker.run.step} of {steps}, condition {asker.condition.name}, {items}")
        for one in wanted:
            if asker.there(one):
                print(f"{spec.canonical(one)}: there already")
        run.prepare(workdir)
        for found in asker.asked():
            path = asker.path(found.analysis)
            run.write(path, found, asker.settings(found.analysis))
            print(table.table(found))
            launch.say(f"results: {path} and .npz")
    print(f"report: {write_report(workdir)}")


if __name__ == "__main__":
    cli.run_entry(main)
