"""Re-make claims of the literature: `python -m positionbias.study --name NAME [--scale quick|paper] [--claims ...]`."""

from __future__ import annotations

import pathlib
import shlex
import sys

from positionbias import analyze, evaluate
from positionbias.config import cli
from positionbias.launch import say
from positionbias.spec import ConfigError
from positionbias.studying import definition, results, told
from positionbias.studying.definition import SCALES, Study

FOLDER = "studies"


def parser() -> cli.Parser:
    """The flags of this entry."""
    made = cli.Parser(
        "python -m positionbias.study",
        "Run what a study's claims need, and judge them. The same command goes on where the last one stopped.",
    )
    made.add_argument("--name", help="the study, as configs/NAME/study.toml")
    made.add_argument("--scale", choices=SCALES, default="quick", help="sizes of a CPU, or those of the paper")
    made.add_argument("--claims", metavar="NAME,...", help="run what these claims need; default: what all of them do")
    made.add_argument("--workdir", help=f"the study's folder; default: {FOLDER}/NAME")
    made.add_argument("--list", action="store_true", help="print every study and where its claims stand, and run none")
    return made


def main(argv: list[str]) -> int:
    """Run the entry; returns its exit code."""
    given, _ = cli.parse_command_line(parser(), argv)
    root = pathlib.Path()
    if given.list:
        for flag in ("name", "claims", "workdir"):
            if getattr(given, flag) is not None:
                raise ConfigError(f"--{flag}: cannot be given with --list, which shows every study.")
        return _list(root)
    if given.name is None:
        raise ConfigError(f"--name is missing; allowed: {', '.join(definition.names(root)) or 'none here'}, or --list.")
    study = definition.read(root, given.name)
    folder = pathlib.Path(FOLDER, study.name) if given.workdir is None else cli.folder(given.workdir)
    return _run(study, given.scale, folder, given.claims)


def _list(root: pathlib.Path) -> int:
    names, code = definition.names(root), 0
    if not names:
        raise ConfigError("--list: no study is here; allowed: in a folder that has configs/NAME/study.toml.")
    widest = max(map(len, names))
    for name in names:
        try:
            print(told.listed(definition.read(root, name), results.read(root / FOLDER / name, name), widest))
        except ConfigError as error:  # the others are listed for all that
            print(f"{name:<{widest}}  error: {error}", file=sys.stderr)
            code = 2
    return code


def every(root: pathlib.Path) -> dict[str, tuple[Study, results.Records]]:
    """Every study in `root` and its records, by name."""
    found = {}
    for name in definition.names(root):
        found[name] = (definition.read(root, name), results.read(root / FOLDER / name, name))
    return found


def check_flags(study: Study) -> None:
    """Refuse labels and flags that evaluate or analyze do not take, and flags that the study gives itself."""
    for part in study.parts.values():
        for kind, entry, commands in (("evaluate", evaluate, part.evaluate), ("analyze", analyze, part.analyze)):
            for name, flags in commands.items():
                label = ["--label", name] if kind == "evaluate" else []
                try:
                    if label:
                        evaluate.check_label(name)
                    cli.parse_command_line(entry.parser(), ["--workdir", "RUN", *label, *shlex.split(flags)])
                except ConfigError as error:
                    raise ConfigError(f"parts.{part.name}.{kind}.{name}: {error}") from None


def _run(study: Study, scale: str, folder: pathlib.Path, claims: str | None) -> int:
    from positionbias.studying import report, running

    results.read(folder, study.name)  # what is wrong is refused before hours of training, not after
    check_flags(study)
    runner = running.Runner(study, scale, folder, claims)
    code = runner.run()
    records = results.read(folder, study.name)
    for claim in runner.claims:
        record = results.current(claim, records, scale)
        ours = "" if record is None else f": {told.measured(record)}, {told.asked(claim)} is asked"
        here = record is None or claim.name in runner.judged
        before = "" if here else "; kept from before, its runs are not all here"
        say(f"{claim.name}: {told.verdict(claim, records, scale)}{ours}{before}")
    if records:
        say(f"claims: {folder / results.NAME}")
    say(f"report: {report.write(folder, study, records)}")
    return code


if __name__ == "__main__":
    cli.run_entry(main)
