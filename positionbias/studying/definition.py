"""A study as it is written down, before any of it runs: `configs/NAME/study.toml`.

    title = "..."
    about = "..."
    [papers]
    wu2025 = "Wu et al. 2025, On the Emergence of Position Bias in Transformers, arXiv 2502.01951"

    [parts.masks]
    config = "configs/emergence/masks.py"
    sweep = "default"                          # without: the config is one run
    analyze.sinks = "--analyses 'sink_mass'"   # flags of positionbias.analyze, of every cell; evaluate.LABEL likewise
    quick = { minutes = 20, cells = "causal,decay", settings = { "train.replicas" = 5 } }
    paper = { settings = { "train.steps" = 100000 } }

    [claims.causal_favours_the_first]
    says = "..."
    paper = "wu2025"
    source = "figure 2"
    theirs = "+0.059"
    statistic = "accuracy('masks/causal', condition='conflict', query=0) - ..."
    holds = [0.0, inf]                         # where the interval must lie
    null = "..."                               # a formula that should give nothing, shown beside it
    solved = "accuracy('masks/causal') > 0.6"  # which replicas learned the task, 1 or 0
    scales = ["quick", "paper"]
    why = "..."                                # why it is believed to fail, once it has
    note = "..."                               # what its number does not say, or another number that does

A claim's verdict follows from this and from the values alone: see `judging.py`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from positionbias.config.resolve import check_safe_name
from positionbias.spec import ConfigError, show, unknown
from positionbias.studying.formula import Formula, parse, part_of

SCALES = ("quick", "paper")
FEWEST = 5  # replicas that a claim is judged by, at least
MOST_QUICK = 3  # claims of one paper at the quick scale, the figures that a reader remembers

_STUDY = {"title", "about", "papers", "parts", "claims"}
_PART = {"config", "sweep", "evaluate", "analyze", *SCALES}
_SCALE = {"minutes", "cells", "settings"}
_CLAIM_NEEDS = {"says", "paper", "source", "statistic", "holds", "scales"}
_CLAIM = _CLAIM_NEEDS | {"theirs", "null", "solved", "replicas", "why", "note"}


@dataclasses.dataclass(frozen=True)
class AtScale:
    """How a part runs at one scale."""

    minutes: float | None  # expected on two CPU cores; None where nobody has measured it
    cells: str | None  # as `--cells` takes them; None is all
    settings: Mapping[str, Any]  # overrides by dotted field


@dataclasses.dataclass(frozen=True)
class Part:
    """One command of training, and what is done to every run that it leaves."""

    name: str
    config: str
    sweep: str | None
    evaluate: Mapping[str, str]  # flags of `positionbias.evaluate` by the label of its results
    analyze: Mapping[str, str]  # flags of `positionbias.analyze`, by names that say what for
    scales: Mapping[str, AtScale]

    def made(self, scale: str) -> dict[str, Any]:
        """What its runs come of."""
        settings = {field: str(value) for field, value in self.scales[scale].settings.items()}
        return {"config": self.config, "sweep": self.sweep, "settings": settings}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement with a number, and the rule that decides it."""

    name: str
    says: str
    paper: str
    source: str
    theirs: str
    statistic: Formula
    holds: tuple[float, float]
    null: Formula | None
    solved: Formula | None
    scales: tuple[str, ...]
    replicas: int
    why: str
    note: str
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)  # those whose runs it reads

    @property
    def formulas(self) -> list[Formula]:
        """The statistic, the null and what says whether a task was solved, as far as there are any."""
        return [one for one in (self.statistic, self.null, self.solved) if one is not None]

    @property
    def runs(self) -> list[str]:
        """The runs that it reads, as PART/CELL or PART."""
        return list(dict.fromkeys(run for one in self.formulas for run in one.runs))

    def rule(self, scale: str) -> dict[str, Any]:
        """All that the verdict follows from but the values: kept beside a verdict, to tell if it was changed since."""
        return {
            "says": self.says,
            "statistic": self.statistic.text,
            "holds": [None if math.isinf(end) else end for end in self.holds],
            "null": None if self.null is None else self.null.text,
            "solved": None if self.solved is None else self.solved.text,
            "replicas": self.replicas,
            "parts": {name: part.made(scale) for name, part in self.parts.items()},
            "flags": {name: flags for part in self.parts.values() for name, flags in self._flags(part).items()},
        }

    def _flags(self, part: Part) -> dict[str, str]:
        """The flags of what it reads of a part beside its runs, by PART.LABEL."""
        own = [one for formula in self.formulas for one in formula.readings if part_of(one.run) == part.name]
        evaluated = [str(one.keywords["evals"]) for one in own if one.keywords.get("evals") is not None]
        analysed = part.analyze if any(one.measure == "analysis" for one in own) else {}
        found = {
            label: flags for label, flags in part.evaluate.items() if any(evaluation_is_of(e, label) for e in evaluated)
        }
        return {f"{part.name}.{label}": flags for label, flags in (found | dict(analysed)).items()}


@dataclasses.dataclass(frozen=True)
class Study:
    """Parts that run, and claims about what they leave."""

    name: str
    title: str
    about: str
    papers: Mapping[str, str]
    parts: Mapping[str, Part]
    claims: Mapping[str, Claim]

    def at(self, scale: str) -> list[Claim]:
        """The claims of a scale."""
        return [claim for claim in self.claims.values() if scale in claim.scales]

    def parts_at(self, scale: str) -> list[Part]:
        """The parts that these claims read."""
        return self.read_by(self.at(scale))

    def read_by(self, claims: Iterable[Claim]) -> list[Part]:
        """The parts that some claims read."""
        needed = {part_of(run) for claim in claims for run in claim.runs}
        return [part for name, part in self.parts.items() if name in needed]


def names(root: pathlib.Path) -> list[str]:
    """The studies whose definitions lie in `root`/configs, in the order of their names."""
    return sorted(path.parent.name for path in (root / "configs").glob("*/study.toml"))


def read(root: pathlib.Path, name: str) -> Study:
    """The study of that name. Raises ConfigError with the place of whatever is wrong in it."""
    known = names(root)
    if not known:
        raise ConfigError(f"--name: {name!r} is not here; allowed: in a folder that has configs/NAME/study.toml.")
    if name not in known:
        raise unknown("--name", "study", name, known)
    path = root / "configs" / name / "study.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        return _study(name, raw)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        told = f"{str(path)!r} cannot be read ({' '.join(str(error).split())})"
        raise ConfigError(f"--name: {told}; allowed: a definition in TOML.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _study(name: str, raw: dict[str, Any]) -> Study:
    _keys(raw, "study", _STUDY, _STUDY)
    papers = {key: _text(one, f"papers.{key}") for key, one in _table(raw["papers"], "papers").items()}
    parts = {key: _part(key, one) for key, one in _table(raw["parts"], "parts").items()}
    claims = {key: _claim(key, one, papers) for key, one in _table(raw["claims"], "claims").items()}
    for field, table in (("parts", parts), ("claims", claims)):
        if not table:
            raise ConfigError(f"{field}: {{}} is not allowed; allowed: one or more.")
        folded = [key.casefold() for key in table]
        twice = next((key for key in table if folded.count(key.casefold()) > 1), None)
        if twice is not None:  # one folder, where the system ignores case
            raise ConfigError(f"{field}: {twice!r} is there twice but for case; allowed: names that differ in more.")
    study = Study(name, _text(raw["title"], "title"), _text(raw["about"], "about"), papers, parts, claims)
    for claim in claims.values():
        _check_runs(claim, study)
        read_of = {part_of(run) for run in claim.runs}
        claims[claim.name] = dataclasses.replace(claim, parts={one: parts[one] for one in parts if one in read_of})
    for paper in papers:
        count = sum(claim.paper == paper for claim in study.at("quick"))
        if count > MOST_QUICK:
            raise ConfigError(f"claims: {count} of {paper!r} are quick; allowed: {MOST_QUICK} a paper.")
    _refuse_unread(study)
    return study


def _part(name: str, raw: Any) -> Part:
    field = f"parts.{name}"
    check_safe_name(name, field)
    _keys(raw, field, _PART, {"config"})
    sweep = raw.get("sweep")
    return Part(
        name=name,
        config=_text(raw["config"], f"{field}.config"),
        sweep=None if sweep is None else _text(sweep, f"{field}.sweep"),
        evaluate=_commands(raw.get("evaluate", {}), f"{field}.evaluate"),
        analyze=_commands(raw.get("analyze", {}), f"{field}.analyze"),
        scales={scale: _at_scale(raw[scale], f"{field}.{scale}", sweep) for scale in SCALES if scale in raw},
    )


def _at_scale(raw: Any, field: str, sweep: str | None) -> AtScale:
    _keys(raw, field, _SCALE, set())
    minutes, cells = raw.get("minutes"), raw.get("cells")
    if minutes is not None and (type(minutes) not in (int, float) or not 0 < minutes < math.inf):
        raise ConfigError(f"{field}.minutes: {show(minutes)} is not allowed; allowed: a number above 0.")
    if cells is not None and (not isinstance(cells, str) or sweep is None):
        raise ConfigError(
            f"{field}.cells: {show(cells)} is not allowed; allowed: names of cells, of a part with a sweep."
        )
    return AtScale(minutes, cells, _table(raw.get("settings", {}), f"{field}.settings"))


def _claim(name: str, raw: Any, papers: Mapping[str, str]) -> Claim:
    field = f"claims.{name}"
    check_safe_name(name, field)
    _keys(raw, field, _CLAIM, _CLAIM_NEEDS)
    holds, replicas = raw["holds"], raw.get("replicas", FEWEST)
    ends = isinstance(holds, list) and len(holds) == 2 and all(type(end) in (int, float) for end in holds)
    if not ends or not holds[0] < holds[1] or holds == [-math.inf, math.inf]:
        raise ConfigError(
            f"{field}.holds: {show(holds)} is not allowed; allowed: [low, high], the lower first; one may be inf."
        )
    if type(replicas) is not int or replicas < FEWEST:
        raise ConfigError(f"{field}.replicas: {show(replicas)} is not allowed; allowed: a whole number from {FEWEST}.")
    if _text(raw["paper"], f"{field}.paper") not in papers:
        raise unknown(f"{field}.paper", "paper", raw["paper"], papers)
    scales = raw["scales"]
    if not isinstance(scales, list) or scales not in [[one] for one in SCALES] + [list(SCALES), list(SCALES[::-1])]:
        raise ConfigError(f"{field}.scales: {show(scales)} is not allowed; allowed: a list of {' and '.join(SCALES)}.")
    texts = ("says", "paper", "source", "theirs", "why", "note")
    said = {key: _text(raw[key], f"{field}.{key}") if key in raw else "" for key in texts}
    return Claim(
        name=name,
        says=said["says"],
        paper=said["paper"],
        source=said["source"],
        theirs=said["theirs"],
        why=said["why"],
        note=said["note"],
        statistic=parse(raw["statistic"], f"{field}.statistic"),
        holds=(float(holds[0]), float(holds[1])),
        null=parse(raw["null"], f"{field}.null") if "null" in raw else None,
        solved=parse(raw["solved"], f"{field}.solved") if "solved" in raw else None,
        scales=tuple(scales),
        replicas=replicas,
    )


def _check_runs(claim: Claim, study: Study) -> None:
    """Refuse a claim that reads runs of no part, or of parts that do not run at its scales."""
    for run in claim.runs:
        part, slash, _ = run.partition("/")
        field = f"claims.{claim.name}"
        if part not in study.parts:
            raise unknown(field, "part", part, study.parts)
        if bool(slash) != (study.parts[part].sweep is not None):
            what = f"{part}/CELL, of a sweep" if not slash else f"{part}, which is one run"
            raise ConfigError(f"{field}: {run!r} is not allowed; allowed: {what}.")
        for scale in claim.scales:
            if scale not in study.parts[part].scales:
                raise ConfigError(
                    f"{field}.scales: the part {part!r} does not run at {scale!r}; allowed: where it does."
                )
    for reading in (one for formula in claim.formulas for one in formula.readings):
        read, evals = study.parts[part_of(reading.run)], reading.keywords.get("evals")
        for file in (evals, reading.positional[0] if reading.measure == "analysis" else None):
            if file is not None and pathlib.PurePath(file).name != file:
                told = f"{show(file)} is not allowed"
                raise ConfigError(f"claims.{claim.name}: {told}; allowed: the name of a file in the run's folder.")
        if evals is not None and not any(evaluation_is_of(evals, label) for label in read.evaluate):
            raise unknown(f"claims.{claim.name}", f"evaluation of {read.name}", evals, read.evaluate)
        if reading.measure == "analysis" and not read.analyze:
            told = f"no analysis is made of the part {read.name!r}"
            raise ConfigError(f"claims.{claim.name}: {told}; allowed: parts with analyze.NAME.")


def _refuse_unread(study: Study) -> None:
    """Refuse what would run for nothing: parts and commands of which no claim reads a number."""
    read = [reading for claim in study.claims.values() for one in claim.formulas for reading in one.readings]
    for part in study.parts.values():
        own = [one for one in read if part_of(one.run) == part.name]
        if not own:
            raise ConfigError(f"parts.{part.name}: no claim reads it; allowed: parts that claims read.")
        for label in part.evaluate:
            if not any(evaluation_is_of(str(one.keywords.get("evals")), label) for one in own):
                told = f"no claim reads the evaluation {label!r}"
                raise ConfigError(f"parts.{part.name}.evaluate: {told}; allowed: those with evals='{label}...'.")
        if part.analyze and not any(one.measure == "analysis" for one in own):
            raise ConfigError(
                f"parts.{part.name}.analyze: no claim reads an analysis; allowed: parts of which one does."
            )


def evaluation_is_of(evals: str, label: str) -> bool:
    """Whether `positionbias.evaluate --label LABEL` writes the evaluation: LABEL, or LABEL_VARIANT."""
    return evals == label or evals.startswith(f"{label}_")


def _commands(raw: Any, field: str) -> dict[str, str]:
    found = _table(raw, field)
    for key, flags in found.items():
        check_safe_name(key, field)
        try:
            shlex.split(_text(flags, f"{field}.{key}"))
        except ValueError:
            raise ConfigError(f"{field}.{key}: {flags!r} is not allowed; allowed: flags, as in a shell.") from None
    return found


def _keys(raw: Any, field: str, allowed: set[str], needed: set[str]) -> None:
    for key in _table(raw, field):
        if key not in allowed:
            raise unknown(field, "key", key, allowed)
    missing = sorted(needed - raw.keys())
    if missing:
        raise ConfigError(f"{field}: {missing[0]!r} is missing; allowed: {', '.join(sorted(allowed))}.")


def _table(raw: Any, field: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{field}: {show(raw)} is not allowed; allowed: a table.")
    return raw


def _text(raw: Any, field: str) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ConfigError(f"{field}: {show(raw)} is not allowed; allowed: a text.")
    return " ".join(raw.split())
