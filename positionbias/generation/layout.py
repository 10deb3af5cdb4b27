"""The tokens of a sequence that is generated, known before any of it is, and whether a model can read it so."""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Bool, Int
from positionbias.config.build import Experiment
from positionbias.config.fields import read_by_mask
from positionbias.generation.given import tokens_of
from positionbias.masks.base import Mask
from positionbias.models.base import visible
from positionbias.operators.base import Operator
from positionbias.spec import ConfigError, canonical
from positionbias.tasks.base import Condition
from positionbias.tokens import Tokens, joined


def layout(
    experiment: Experiment,
    condition: Condition,
    context: int,
    rows: int,
    valid: Bool[np.ndarray, "B P"] | None,
    tokens: Tokens | None,
    prompts: int,
) -> Tokens:
    """The tokens of all `rows`, numpy, [S] each or [B, S].

    Those given are taken as they are. Else they are the condition's, continued in the group of its last, and told the
    positions that the assignment gives them; where prompts are padded (`valid`), groups and positions are those of
    what is no padding.
    """
    if tokens is not None:
        return tokens_of(tokens, prompts, rows).cut(0, rows)
    for good, what in (
        (experiment.task.shared_tokens, f"the task {experiment.config.task} lays every example out anew"),
        (not experiment.assignment.drawn, f"{canonical(experiment.assignment)} draws the positions of every example"),
    ):
        if not good:
            raise ConfigError(f"tokens: {what}; allowed: tokens of your own, such as run.sample(size).tokens.")
    told = _continued(experiment.task.tokens(condition), rows)
    if valid is not None:
        _check_padded(experiment, context)
        told = _padded(told, valid)
    return experiment.assigned(told, context, None)


def _check_padded(experiment: Experiment, context: int) -> None:
    """Raise ConfigError where padding would take rows of a context that is read apart."""
    architecture, masks = experiment.architecture, experiment.looks
    apart = architecture.place(context) is not None or architecture.first_row(context) > 0
    if apart or any("context" in read_by_mask(mask, q, k) for _, mask, q, k in masks):
        raise ConfigError(
            f"valid: padding would take rows of the context, which model.architecture ="
            f" {experiment.config.model.architecture} with model.mask = {experiment.config.model.mask} reads apart;"
            " allowed: prompts of one length, valid=None."
        )


def _continued(tokens: Tokens, rows: int) -> Tokens:
    """The first `rows`, with more like the last behind it if there are too few."""
    last, ahead = tokens.cut(tokens.length - 1, tokens.length), np.arange(1, rows - tokens.length + 1, dtype=np.int32)
    if not len(ahead):
        return tokens.cut(0, rows)
    more = Tokens(*(np.repeat(field, len(ahead), axis=-1) for field in last))
    return joined([tokens, more._replace(index=last.index + ahead, position=last.position + ahead)])


def _padded(tokens: Tokens, valid: Bool[np.ndarray, "B P"]) -> Tokens:
    """The tokens of each prompt, [B, S]: what is no padding is told what it would be told without any in front."""
    size, prompt = valid.shape
    good = np.concatenate([valid, np.ones((size, tokens.length - prompt), bool)], axis=-1)
    counted = np.maximum(np.cumsum(good, axis=-1, dtype=np.int32) - 1, 0)
    told = Tokens(*(field[counted] for field in tokens))
    return told._replace(valid=good, index=np.broadcast_to(tokens.index, counted.shape))


def check_tables(experiment: Experiment, told: Tokens, context: int, length: int) -> None:
    """Raise ConfigError where positions are told that a scheme has no row for."""
    blueprint, place = experiment.blueprint, experiment.architecture.place(context)
    most = int(np.max(told.position if place is None else joined(told.parted(place)).position)) + 1
    if most <= blueprint.length:
        return
    here, there = blueprint.dims, dataclasses.replace(blueprint.dims, length=most)
    for scheme in blueprint.positions:
        sizes = [
            (scheme.own_features(d), scheme.embedding_parameters(d), scheme.layer_parameters(d)) for d in (here, there)
        ]
        try:
            scheme.check(there)
            fits = sizes[0] == sizes[1]
        except ConfigError:
            fits = False
        if not fits:
            raise ConfigError(
                f"length: {length} more tokens need positions up to {most - 1}, but model.position ="
                f" {canonical(scheme)} was trained on {blueprint.length}; allowed: fewer, or a position scheme without"
                " a table."
            )


def check_lengths(experiment: Experiment, told: Tokens, context: int) -> None:
    """Raise ConfigError where a mask shows rows other keys than among as many rows as were trained."""
    read, trained = told.length, experiment.task.length(experiment.task.conditions()[0])
    if read == trained:
        return
    others = told.cut(0, trained) if trained < read else _continued(told, trained)
    pairs = zip(_attentions(experiment, told, context), _attentions(experiment, others, context), strict=True)
    for (name, _, mask, *given), (_, _, _, *other) in pairs:
        last = [min(_places(one).max(), _places(two).max()) for one, two in zip(given, other, strict=True)]
        seen = []
        for sides in (given, other):
            common = (_places(side) <= most for side, most in zip(sides, last, strict=True))
            seen.append(np.asarray(mask.dense(*sides))[..., *np.ix_(*common)])
        differ = np.argwhere(seen[0] != seen[1])
        if len(differ):
            field = experiment.architecture.mask_field(name) or "model.architecture"
            raise ConfigError(
                f"{field}: the mask {canonical(mask)} of {name} counts rows: among"
                f" the {read} that are read it shows row {_places(given[0])[differ[0][-2]]} other keys than among the"
                f" {trained} trained; allowed: prompts and lengths with which {trained} are read, or another mask."
            )


def check_kept(
    experiment: Experiment, told: Tokens, context: int, step: Int[np.ndarray, "... S"], steps: bool, stored: bool
) -> None:
    """Raise ConfigError where rows that are read once, each at its `step`, would come out otherwise than all at once.

    `steps` is whether the architecture has a way to, `stored` whether they are read in the order stored.
    """
    if not steps:
        raise ConfigError(
            f"cached: the architecture {experiment.config.model.architecture} keeps nothing of earlier rows; allowed:"
            " cached=False."
        )
    for name, operator, mask, q, k in _attentions(experiment, told, context):
        why = _unread(operator, q is not k, stored)
        if why is not None:
            raise ConfigError(
                f"cached: the operator {canonical(operator)} of {name} cannot read each row once: {why}; allowed:"
                " cached=False."
            )
        later = step[..., None, _places(k)] > step[..., _places(q), None]
        found = np.argwhere(np.asarray(visible(operator, mask, q, k)) & later)
        if len(found):
            i, j = _places(q)[found[0][-2]], _places(k)[found[0][-1]]
            raise ConfigError(
                f"cached: the mask {canonical(mask)} of {name} lets row {i} see row {j}, which is generated after it;"
                " allowed: cached=False, or a mask under which rows see none that come later."
            )


def _unread(operator: Operator, crosses: bool, stored: bool) -> str | None:
    """Why an operator has to be called on all rows; None if it need not."""
    if crosses:
        return None  # a row reads what an encoder read, and no other row
    if operator.carries:
        return None if stored else "its state takes rows in the order stored"
    return None if operator.steps else operator.whole


def _attentions(experiment: Experiment, told: Tokens, context: int) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
    return experiment.architecture.attentions(experiment.blueprint, told.told_context(context), context)


def _places(tokens: Tokens) -> Int[np.ndarray, "T"]:
    """Which rows of the sequence these are."""
    return np.asarray(tokens.index).reshape(-1, tokens.length)[0]
