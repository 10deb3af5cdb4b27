"""Running a study: its parts one after another, each by the command that a user would write, then the verdicts.

Nothing is run twice: sweeps skip finished cells, and evaluations and analyses whose results are there are left alone,
so that the same command goes on where the last one stopped. After every part the claims that can be judged are.
"""

from __future__ import annotations

import itertools
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from positionbias.analysis.base import Analysis
from positionbias.analysis.run import label, parsed
from positionbias.config import sharing, sweeps
from positionbias.config.cli import load_config
from positionbias.config.resolve import config_hash, resolve
from positionbias.errors import named
from positionbias.evaluation import stored
from positionbias.files import write_json, writing
from positionbias.launch import say
from positionbias.spec import ConfigError, unknown
from positionbias.studying import judging, results
from positionbias.studying.definition import AtScale, Claim, Part, Study, evaluation_is_of
from positionbias.studying.formula import Reading, part_of
from positionbias.studying.recorded import manifest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def runs_of(part: Part, scale: str) -> dict[str, str]:
    """The runs that a part leaves at a scale, as PART/CELL or PART, with the hashes of their configs.

    Raises ConfigError if its config is refused.
    """
    at, overrides = part.scales[scale], overridden(part.scales[scale])
    try:
        if part.sweep is None:
            return {part.name: config_hash(resolve(load_config(part.config, overrides)))}
        cells = sweeps.cells(part.config, part.sweep, overrides)
        chosen = cells if at.cells is None else sharing.part(cells, at.cells)
    except ConfigError as error:
        raise ConfigError(f"parts.{part.name}: {error}") from None
    return {f"{part.name}/{cell.name}": cell.hash for cell in chosen}


def overridden(at: AtScale) -> list[tuple[str, str]]:
    """The settings of a scale, as the command line takes them."""
    return [(field, value if isinstance(value, str) else repr(value)) for field, value in at.settings.items()]


def check(study: Study, scale: str) -> dict[str, str]:
    """The runs of a scale, with the hashes of their configs.

    Raises ConfigError where nothing runs, and for claims that read a cell or an array that no part leaves.
    """
    if not study.at(scale):
        raise ConfigError(f"--scale: the study {study.name!r} has no claim at {scale!r}; allowed: another scale.")
    left = {run: digest for part in study.parts_at(scale) for run, digest in runs_of(part, scale).items()}
    for claim in study.at(scale):
        for run in claim.runs:
            if run not in left:
                known = sorted(one for one in left if part_of(one) == part_of(run))
                raise unknown(f"claims.{claim.name}", "run", run, known)
        for reading in (one for formula in claim.formulas for one in formula.readings if one.measure == "analysis"):
            _check_array(claim, reading, study.parts[part_of(reading.run)])
    return left


def _check_array(claim: Claim, reading: Reading, part: Part) -> None:
    """Refuse an array that none of a part's analyses leaves: hours of training come before it would be missed."""
    file, array, *at = reading.positional
    asked: dict[str, Analysis] = {}
    for name, flags in part.analyze.items():
        try:
            asked |= {label(one): one for one in parsed(_given(flags, "--analyses"))}
        except ConfigError as error:
            raise ConfigError(f"parts.{part.name}.analyze.{name}: {error}") from None
    field = f"claims.{claim.name}"
    known = [name for name in asked if file == name or file.startswith(f"{name}--")]
    if not known:
        raise unknown(field, "result of an analysis", file, asked)
    axes = asked[max(known, key=len)].axes
    if array not in axes:
        raise unknown(field, "array", array, axes)
    if len(at) > len(axes[array]):
        told = f"{len(at)} places of {array!r} are not allowed"
        raise ConfigError(f"{field}: {told}; allowed: one for each of {', '.join(axes[array]) or 'no axis'}.")


def _given(flags: str, flag: str) -> str:
    """What a flag among others is given, '' if it is not there."""
    words = shlex.split(flags)
    joined = next((word.partition("=")[2] for word in words if word.startswith(f"{flag}=")), "")
    return joined or next((value for word, value in itertools.pairwise(words) if word == flag), "")


def chosen(study: Study, scale: str, given: str) -> list[Claim]:
    """The claims of a scale that `--claims` names. Raises ConfigError for a name that none has, or that is twice."""
    known = [claim.name for claim in study.at(scale)]
    names = named("--claims", "claim", given, study.claims)
    for name in names:
        if name not in known:
            raise ConfigError(f"--claims: {name!r} is not asked at {scale!r}; allowed: {', '.join(known)}.")
    return [study.claims[name] for name in study.claims if name in names]


class Runner:
    """Runs a study at one scale, in a folder of its own: for all of its claims, or for those that are named."""

    def __init__(self, study: Study, scale: str, folder: pathlib.Path, given: str | None = None) -> None:
        self.hashes = check(study, scale)
        self.claims = study.at(scale) if given is None else chosen(study, scale, given)
        self.parts = study.read_by(self.claims)
        self.study, self.scale, self.folder = study, scale, folder
        self.judged: set[str] = set()  # claims whose runs are all here
        self._refused: dict[str, str] = {}  # why claims could not be judged, the last time
        for part in self.parts:
            befores = {run: manifest(self.folder_of(run)).get("hash") for run in self._runs_of(part)}
            if any(before not in (None, self.hashes[run]) for run, before in befores.items()):
                home = str(self.folder / "runs" / scale / part.name)
                told = f"{home!r} holds runs of what it was before it was changed"
                raise ConfigError(f"parts.{part.name}: {told}; allowed: that folder deleted, or another --workdir.")

    def folder_of(self, run: str) -> pathlib.Path:
        """The run folder of PART/CELL or PART."""
        part, slash, cell = run.partition("/")
        home = self.folder / "runs" / self.scale / part
        return home / "cells" / cell if slash else home

    def finished(self, run: str) -> bool:
        """Whether a run is finished, and of the config that the study has now."""
        found = manifest(self.folder_of(run))
        return found.get("status") == "finished" and found.get("hash") == self.hashes[run]

    def run(self) -> int:
        """Run what is missing, part by part, and judge; the exit code: the largest of the commands', 0 if all ended.

        What one command could not do does not stop the others: of a sweep with a broken cell the other cells are
        measured. A claim that asks for what its runs do not hold is told, and is exit code 2.
        """
        code = 0
        for part in self.parts:  # all of them first: after any of them all claims are judged that can be
            self._forget(part)
        for number, part in enumerate(self.parts, start=1):
            minutes = part.scales[self.scale].minutes
            about = f", about {minutes:g} min on two cores" if minutes else ""
            for command in self.commands(part):
                say(f"[{number} of {len(self.parts)}] {part.name}{about}: {shlex.join(command)}")
                about = ""  # told once: it is of the whole part
                ended = _call([sys.executable, *command[1:]])
                code = max(code, ended)
                if ended:
                    say(f"part {part.name} ended with exit code {ended}", sys.stderr)
                    if ended > 128:
                        self.judge()
                        say("stopped; the same command goes on from there")
                        return ended
            self.judge()
        refused = dict(self._refused) if code else self._refused | self._lacking()  # after a failure, that was told
        for name, why in refused.items():
            say(f"error: claims.{name}: {why}", sys.stderr)
            code = max(code, 2)
        return code

    def commands(self, part: Part) -> Iterator[list[str]]:
        """What is left to run of a part, looked up as each one's turn comes."""
        at = part.scales[self.scale]
        home = self.folder / "runs" / self.scale / part.name
        runs = self._runs_of(part)
        entry = "train" if part.sweep is None else "sweep"
        if not all(map(self.finished, runs)):
            command = ["python", "-m", f"positionbias.{entry}", "--config", part.config]
            command += [] if part.sweep is None else ["--sweep", part.sweep]
            command += [] if at.cells is None else ["--cells", at.cells]
            command += ["--workdir", str(home), *(f"--config.{field}={value}" for field, value in overridden(at))]
            yield command
        for run in runs:
            folder = self.folder_of(run)
            if not self.finished(run):  # it failed, which has been told
                continue
            for name, flags in part.evaluate.items():
                if self._missing(run, "evals", name):
                    given = ["--workdir", str(folder), "--label", name, *shlex.split(flags)]
                    yield ["python", "-m", "positionbias.evaluate", *given]
            if part.analyze and self._missing(run, "analysis"):
                for flags in part.analyze.values():
                    yield ["python", "-m", "positionbias.analyze", "--workdir", str(folder), *shlex.split(flags)]

    def _forget(self, part: Part) -> None:
        """Delete what was evaluated or analysed with other flags than the study has now, and keep those of now."""
        path = self.folder / "runs" / self.scale / f"{part.name}.json"
        given = {**part.evaluate, **part.analyze}
        before = stored.read(path, {str: str})
        changed = {name for name, flags in given.items() if before.get(name, flags) != flags}
        for run in self._runs_of(part):
            evaluated = self._files(self.study.at(self.scale), run, "evals")
            stale = {one for one in evaluated if any(evaluation_is_of(one.stem, name) for name in changed)}
            stale |= self._files(self.study.at(self.scale), run, "analysis") if changed & part.analyze.keys() else set()
            for one in stale:
                one.unlink(missing_ok=True)
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, given)

    def _runs_of(self, part: Part) -> list[str]:
        return [run for run in self.hashes if part_of(run) == part.name]

    def _missing(self, run: str, kind: str, label: str = "") -> bool:
        """Whether a file that a claim reads of a run is not there yet."""
        return any(
            not path.exists()
            for path in self._files(self.claims, run, kind)
            if kind == "analysis" or evaluation_is_of(path.stem, label)
        )

    def _files(self, claims: list[Claim], run: str, kind: str) -> set[pathlib.Path]:
        """The files of evaluations or of analyses that claims read of a run."""
        found = set()
        for reading in (one for claim in claims for formula in claim.formulas for one in formula.readings):
            if reading.run != run:
                continue
            if kind == "evals" and reading.keywords.get("evals") is not None:
                found.add(self.folder_of(run) / "evals" / f"{reading.keywords['evals']}.npz")
            if kind == "analysis" and reading.measure == "analysis":
                found.add(self.folder_of(run) / "analysis" / f"{reading.positional[0]}.npz")
        return found

    def ready(self, claim: Claim) -> bool:
        """Whether all that a claim reads is there."""
        there = all(path.exists() for path in self._needed(claim))
        return there and all(map(self.finished, claim.runs))

    def _needed(self, claim: Claim) -> set[pathlib.Path]:
        return {
            path for run in claim.runs for kind in ("evals", "analysis") for path in self._files([claim], run, kind)
        }

    def judge(self) -> Mapping[str, dict[str, Any]]:
        """Judge those of the claims whose runs are all there, and keep the records; others stay as they are."""
        found = {}
        self._refused = {}
        for claim in self.claims:
            if self.ready(claim):
                try:
                    found[claim.name] = self._judged(claim)
                except ConfigError as error:
                    self._refused[claim.name] = str(error)
        if found:
            results.keep(self.folder, self.study, self.scale, found)
        self.judged = set(found)
        return found

    def _judged(self, claim: Claim) -> dict[str, Any]:
        return judging.record(claim, judging.judge(claim, self.folder_of), self.folder_of, self.scale)

    def _lacking(self) -> dict[str, str]:
        """What claims of which all runs are there lack, by name."""
        told = {}
        for claim in self.claims:
            if all(map(self.finished, claim.runs)):
                lacking = sorted(str(path) for path in self._needed(claim) if not path.exists())
                if lacking:
                    told[claim.name] = (
                        f"{lacking[0]!r} is not there; allowed: what evaluate and analyze of its part make."
                    )
        return told


def _call(command: list[str]) -> int:
    """Run a command to its end and return its exit code; signals for this process are passed on to it.

    It is in a session of its own, so that Ctrl-C reaches it once and not twice, which would cut it short.
    """
    child: subprocess.Popen[bytes] | None = None
    met: list[int] = []
    early: list[int] = []  # of these, before there was a child to pass them on to

    def forward(number: int, _: FrameType | None) -> None:
        met.append(number)
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    before = {
        number: signal.signal(number, forward) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        child = subprocess.Popen(command, start_new_session=True)
        for number in early:
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = 128 - code if code < 0 else code
    return 128 + met[0] if met and code <= 128 else code  # it may have ended by itself when the signal came
