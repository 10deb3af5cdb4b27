"""Measuring a trained run again: on fresh or stored items, on longer sequences, under interventions.

Every variant is measured on the same random streams, so that variants of one length have the same items and are
compared item by item.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from positionbias import spec
from positionbias.config.build import Experiment
from positionbias.config.varied import told as combination
from positionbias.evaluation.by_position import Evaluator, theory_of
from positionbias.evaluation.interventions import Intervention
from positionbias.evaluation.loading import LoadedRun, load
from positionbias.evaluation.rows import CHANGED, LOSS, Rows, write_rows
from positionbias.evaluation.statistics import interval
from positionbias.evaluation.summary import summarise
from positionbias.evaluation.table import number, spelt
from positionbias.files import write_json
from positionbias.spec import ConfigError
from positionbias.tasks import export, exported
from positionbias.tasks.base import Batch, Condition, Task, find_condition
from positionbias.tokens import Tokens
from positionbias.training.writers import Evaluating

MOST_TIMES = 1024


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to measure: a context `times` as long as the task's, and perhaps an intervention."""

    times: int = 1
    intervention: Intervention | None = None

    @property
    def name(self) -> str:
        """`2x shift(by=8)`; empty for the task as it is."""
        parts = [f"{self.times}x"] if self.times > 1 else []
        return " ".join([*parts, *([spec.canonical(self.intervention)] if self.intervention is not None else [])])

    @property
    def base(self) -> Variant:
        """What it is held against: the intervention that it is `under`, or none, at the same length."""
        return Variant(self.times, self.intervention and self.intervention.under)


def variants(lengths: str | None, interventions: str | None) -> list[Variant]:
    """Every length, unchanged and then under every intervention; from `1x,2x` and `swap(0, -1), shift`.

    What an intervention is measured `under` is measured alone before it.
    """
    times = [_times(text.strip()) for text in lengths.split(",")] if lengths is not None else [1]
    if len(set(times)) < len(times):
        raise ConfigError(f"--lengths: {lengths!r} has a length twice; allowed: each once.")
    changes: list[Intervention | None] = [None]
    if interventions is not None:
        nodes = spec.parse_several(interventions, "--interventions")
        given = [spec.build("interventions", node, "--interventions") for node in nodes]
        if len({repr(change) for change in given}) < len(given):
            raise ConfigError(f"--interventions: {interventions!r} has one twice; allowed: each once.")
        both = [one for change in given for one in (change.under, change) if one is not None]
        changes += {repr(change): change for change in both}.values()
    return [Variant(one, change) for one in times for change in changes]


def _times(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,3}x", text) or int(text[:-1]) > MOST_TIMES:
        raise ConfigError(f"--lengths: {text!r} is not allowed; allowed: 1x to {MOST_TIMES}x, as in 1x,2x,4x.")
    return int(text[:-1])


@dataclasses.dataclass(frozen=True)
class Measured:
    """The rows and summary of a variant."""

    variant: Variant
    task: str
    rows: Rows
    summary: dict[str, Any]
    stored: dict[str, Any] | None = None  # {"items", "folder"} where they were not drawn afresh


class Measurer:
    """Measures one checkpoint of a run folder. Everything that can be refused is refused when it is made."""

    def __init__(
        self,
        folder: pathlib.Path,
        wanted: Sequence[Variant],
        *,
        step: int | None = None,
        task: str | None = None,
        conditions: str | None = None,
        items: int | None = None,
        data: pathlib.Path | None = None,
    ) -> None:
        self.wanted, self.items = wanted, items
        self.stored: dict[str, Batch] | None = None
        self.source: dict[str, Any] | None = None
        names = None if conditions is None else [name.strip() for name in conditions.split(",")]
        if names is not None and len(set(names)) < len(names):
            raise ConfigError(f"--conditions: {conditions!r} has one twice; allowed: each once.")
        if data is not None:
            given = exported.read(data)
            task, names = spec.full(given.task), [given.condition.name]
            self.stored = {given.condition.name: given.batch}
            self.source = {"items": len(given.batch.query), "folder": str(data)}
        self.names = names
        self.runs: dict[int, LoadedRun] = {}
        for variant in wanted:
            if variant.times not in self.runs:
                run = self._load(folder, step, task, variant.times)
                self.runs[variant.times] = run if data is None else in_world(run, given)
        self.run = self.runs[wanted[0].times]
        for variant in wanted:
            self._check(variant)

    def _load(self, folder: pathlib.Path, step: int | None, task: str | None, times: int) -> LoadedRun:
        own = task is None
        if times > 1:
            base: Task = load(folder, step, 0, task).task
            try:
                longer = base.stretched(times)
            except ConfigError as error:
                raise ConfigError(f"--lengths: {times}x: {error}") from None
            gone = {c.name for c in base.conditions()} - {c.name for c in longer.conditions()}
            if gone:
                told = f"--lengths: {times}x leaves out {', '.join(sorted(gone))}, which the longer task does not have."
                warnings.warn(told, stacklevel=2)
            task = spec.canonical(longer)
        try:
            return load(folder, step, "all", task, own)
        except ConfigError as error:
            told = str(error)
            if not told.startswith("task: ") or (times == 1 and self.source is None):
                raise
            flag = f"--lengths: {times}x" if self.source is None else f"--data_dir: {self.source['folder']!r}"
            raise ConfigError(f"{flag}: {told.removeprefix('task: ')}") from None

    def _check(self, variant: Variant) -> None:
        run, change = self.runs[variant.times], variant.intervention
        for condition in self._conditions(run):
            if change is None:
                continue
            try:
                change.check(run.task, condition)
                check_told(run.experiment, change)
                read = change.tokens_read(run.task.tokens(condition), run.task, condition)
                changed = change.model(run.experiment, condition)
                check_room(run.experiment, changed.positions_needed(condition, read) + change.farther())
                _check_masks(change, changed, condition, read)
            except ConfigError as error:
                raise ConfigError(f"--interventions: {error}") from None

    def _conditions(self, run: LoadedRun) -> list[Any]:
        grid = run.task.conditions()
        return list(grid) if self.names is None else [find_condition(run.task, n, "--conditions") for n in self.names]

    def measured(self, stream: IO[str]) -> Iterator[Measured]:
        """Every variant, in the order wanted; how far each is, on `stream`."""
        for variant in self.wanted:
            run = self.runs[variant.times]
            layout = run.layout
            evaluator = Evaluator(
                run.experiment,
                layout,
                run.keys,
                export.STREAM,
                self.items,
                self._conditions(run),
                variant.intervention,
                self.stored,
                run.own["task"],
            )
            with Evaluating(stream) as line:
                rows = evaluator.rows(layout.place(run.weights), line.update)
            plain = variant.intervention is None and self.names is None
            theory = theory_of(run.experiment) if plain else None
            settings = run.config.train
            varied = settings.vary if len(run.keys) == settings.replicas else {}
            kept = run.experiment.state_size
            summary = summarise(rows, steps=run.step, of=settings.steps, varied=varied, theory=theory, state_size=kept)
            yield Measured(variant, run.config.task, rows, summary, self.source)


def in_world(run: LoadedRun, given: exported.Exported) -> LoadedRun:
    """The replica that the items were drawn for alone, of a task where each has a world of its own; else the run.

    Raises ConfigError where the run does not have that replica.
    """
    if not exported.has_world(given.task):
        return run
    config, replica = run.config, given.replica
    if config.seed != given.seed or replica >= config.train.replicas or "seed" in config.train.vary:
        seeds = f", train.vary.seed = {config.train.vary['seed']}" if "seed" in config.train.vary else ""
        raise ConfigError(
            f"--data_dir: these items are of the world of seed {given.seed}, replica {replica}, but the run has"
            f" seed = {config.seed}, train.replicas = {config.train.replicas}{seeds}; allowed: a run that has this seed"
            " and replica."
        )
    return run.chosen([replica])


def _check_masks(change: Intervention, changed: Experiment, condition: Condition, read: Tokens) -> None:
    """Raise ConfigError where a mask cannot serve as many rows as are `read`."""
    try:
        changed.check_masks(read, changed.context_of(condition, read))
    except ConfigError as error:
        raise ConfigError(f"{spec.canonical(change)}: {error}") from None


def check_told(experiment: Experiment, change: Intervention) -> None:
    """Raise ConfigError if the model is told none of the positions that are all that `change` changes."""
    schemes = experiment.blueprint.positions
    if change.only_told and not any(one.embeds or one.rotates or one.biases or one.multiplies for one in schemes):
        raise ConfigError(
            f"{spec.canonical(change)} changes the positions that a model is told, but with model.position ="
            f" {experiment.config.model.position} it is told none and nothing would change; allowed: interventions that"
            " move contents."
        )


def check_room(experiment: Experiment, length: int) -> None:
    """Raise ConfigError if a position scheme has no parameters or features for positions up to `length` - 1."""
    blueprint = experiment.blueprint
    if length <= blueprint.length:
        return
    longer = dataclasses.replace(blueprint.dims, length=length)
    for scheme in blueprint.positions:
        scheme.check(longer)
        for made in (scheme.embedding_parameters, scheme.layer_parameters, scheme.own_features):
            if made(longer) != made(blueprint.dims):
                raise ConfigError(
                    f"positions up to {length - 1} are needed, but {spec.canonical(scheme)} was trained on"
                    f" {blueprint.length}; allowed: what needs no more, or a position scheme without a table."
                )


def compared(one: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy minus that of the base, paired by replica: {"mean", "low", "high"}."""
    pairs = zip(one["accuracy"]["replicas"], base["accuracy"]["replicas"], strict=True)
    return interval([a - b for a, b in pairs]).to_dict()


def _minus(one: Mapping[str, Any], base: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """`compared`, of the first condition and of all of them; of replicas that differ in more than seeds no interval."""
    each = {name: compared(found, base["by_condition"][name]) for name, found in one["by_condition"].items()}
    if one.get("combinations"):
        each = {name: {**found, "low": None, "high": None} for name, found in each.items()}
    return {"variant": variant, **next(iter(each.values())), "by_condition": each}


def title(variant: Variant) -> str:
    """The name of a variant among others."""
    return variant.name or "1x"


def lines(one: Measured, base: Measured) -> list[str]:
    """A variant in a line, or in one for each condition under its name.

    Where replicas differ in more than seeds there is one for each combination too. Told are the accuracy, and beside
    it, if the variant is the base, what the ceiling and a simple rule reach; else the difference to the base, and how
    many answers the intervention changed.
    """
    against = None if one is base else base.variant.name or "no intervention"
    told = {}
    for where, found, origin in _each(one.summary, base.summary):
        for name, measured in found["by_condition"].items():
            of = [*([where] if where else []), *([name] if len(found["by_condition"]) > 1 else [])]
            told[", ".join(of)] = _line(measured, origin["by_condition"][name], against)
    if len(told) == 1:
        return [f"{title(one.variant)}: {line}" for line in told.values()]
    width = max(map(len, told))
    return [f"{title(one.variant)}:", *(f"  {name:<{width}}  {line}" for name, line in told.items())]


def _each(
    one: Mapping[str, Any], base: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """What is told of a summary beside another: that of each combination of hyperparameters, or the whole."""
    if not one.get("combinations"):
        yield "", one, base
        return
    for found, origin in zip(one["combinations"], base["combinations"], strict=True):
        yield combination(found), found, origin


def _line(one: Mapping[str, Any], base: Mapping[str, Any], against: str | None) -> str:
    parts = [f"accuracy {_told(one['accuracy'])}"]
    if against is None:
        known = " where it is known" if 0 < one["ceiling"]["known"] < 1 else ""
        parts.append(f"ceiling {number(one['ceiling']['mean'])}{known}")
        parts.append(f"{spelt('order_free')} {number(one['baselines']['order_free'])}")
    else:
        parts.append(f"{_told(compared(one, base), '+')} against {against}")
        parts += [f"{name.replace('_', ' ')} {_told(one[name])}" for name in CHANGED if name in one]
    if LOSS in one:
        parts.append(f"loss {_told(one[LOSS])}")
    return ", ".join(parts)


def _told(found: Mapping[str, Any], sign: str = "") -> str:
    if found["low"] is None:
        return f"{found['mean']:{sign}.3f}"
    return f"{found['mean']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def write(folder: pathlib.Path, name: str, one: Measured, base: Measured) -> None:
    """Write `evals/NAME.npz` and `.json`: rows, and summary with task, variant, stored items and difference."""
    write_rows(folder / "evals" / f"{name}.npz", one.rows)
    more: dict[str, Any] = {"task": one.task, "variant": one.variant.name}
    if one.stored is not None:
        more |= {"stored": one.stored}
    told = dict(one.summary)
    if one is not base:
        more |= {"minus": _minus(one.summary, base.summary, base.variant.name)}
        both = zip(one.summary["combinations"], base.summary["combinations"], strict=True)
        told["combinations"] = [{**of, "minus": _minus(of, before, base.variant.name)} for of, before in both]
    write_json(folder / "evals" / f"{name}.json", {**told, **more})
