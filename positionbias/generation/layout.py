"""The tokens of a sequence that is generated, known before any of it is, and whether a model can read it so."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from positionbias.arrays import Bool, Int, Mapped
from positionbias.config.build import Experiment
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
    valid: Bool[Mapped, "B P"] | None,
    tokens: Tokens | None,
) -> Tokens:
    """The tokens of all `rows`, numpy, [S] each or [B, S].

    Those given are taken as they are. Else they are the condition's, continued in the group of its last, and told the
    positions that the assignment gives them; where prompts are padded (`valid`) positions count what is no padding.
    """
    if tokens is not None:
        return _given(tokens, rows, valid)
    for good, what in (
        (experiment.task.shared_tokens, f"the task {experiment.config.task} lays every example out anew"),
        (not experiment.assignment.drawn, f"{canonical(experiment.assignment)} draws the positions of every example"),
    ):
        if not good:
            raise ConfigError(f"tokens: {what}; allowed: tokens of your own, such as run.sample(size).tokens.")
    told = _continued(experiment.task.tokens(condition), rows)
    if valid is not None:
        told = _padded(told, np.asarray(valid, bool))
    return experiment.assigned(told, context, None)


def _given(tokens: Tokens, rows: int, valid: Mapped | None) -> Tokens:
    if not isinstance(tokens, Tokens):
        raise ConfigError(f"tokens: {type(tokens).__name__} is not allowed; allowed: Tokens, as of run.sample(size).")
    told = jax.tree.map(np.asarray, tokens)
    stored = np.broadcast_to(np.arange(told.length), told.index.shape)
    if valid is not None or told.length < rows or (told.index != stored).any():
        why = "tell of padding themselves" if valid is not None else f"are {told.length} with indices {told.index}"
        raise ConfigError(
            f"tokens: those given {why}; allowed: at least {rows} rows, prompt included, of indices 0, 1, ..., and"
            " valid=None."
        )
    if np.min(told.position) < 0:
        raise ConfigError(f"tokens: positions from {np.min(told.position)} are given; allowed: from 0.")
    return told.cut(0, rows)


def _continued(tokens: Tokens, rows: int) -> Tokens:
    """The first `rows`, with more like the last behind it if there are too few."""
    last, ahead = tokens.cut(tokens.length - 1, tokens.length), np.arange(1, rows - tokens.length + 1, dtype=np.int32)
    if not len(ahead):
        return tokens.cut(0, rows)
    more = Tokens(*(np.repeat(field, len(ahead), axis=-1) for field in last))
    return joined([tokens, more._replace(index=last.index + ahead, position=last.position + ahead)])


def _padded(tokens: Tokens, valid: Bool[np.ndarray, "B P"]) -> Tokens:
    """The tokens of each prompt, [B, S], told positions that padding in front does not count."""
    size, prompt = valid.shape
    if not (valid.any(axis=-1) & (np.sort(valid, axis=-1) == valid).all(axis=-1)).all():
        raise ConfigError("valid: allowed are prompts of at least one token that are padded in front alone.")
    told = Tokens(*(np.broadcast_to(field, (size, tokens.length)) for field in tokens))
    good = np.concatenate([valid, np.ones((size, tokens.length - prompt), bool)], axis=-1)
    counted = np.maximum(np.cumsum(good, axis=-1, dtype=np.int32) - 1, 0)
    return told._replace(valid=good, position=counted)


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


def check_masks(experiment: Experiment, told: Tokens, context: int) -> None:
    """Raise ConfigError where a mask cannot serve so many rows."""
    for name, _, mask, q, k in _attentions(experiment, told, context):
        try:
            mask.bind(q, k)
        except ConfigError as error:
            raise ConfigError(f"model.mask: in {name}, {error}") from None


def check_lengths(experiment: Experiment, told: Tokens, context: int, condition: Condition | None) -> None:
    """Raise ConfigError where a mask shows rows other keys than among as many rows as the condition's sequences have.

    Without a condition, that of training.
    """
    read, trained = told.length, experiment.task.length(condition or experiment.task.conditions()[0])
    if read == trained:
        return
    fewer = _attentions(experiment, told.cut(0, trained) if trained < read else _continued(told, trained), context)
    for (name, _, mask, q, k), (_, _, _, other_q, other_k) in zip(
        _attentions(experiment, told, context), fewer, strict=True
    ):
        sides = (q, k), (other_q, other_k)
        last = [min(_places(one).max(), _places(other).max()) for one, other in zip(*sides, strict=True)]
        seen = [
            np.asarray(mask.dense(*both))[
                ..., *np.ix_(*(_places(side) <= most for side, most in zip(both, last, strict=True)))
            ]
            for both in sides
        ]
        differ = np.argwhere(seen[0] != seen[1])
        if len(differ):
            raise ConfigError(
                f"length: the mask {canonical(mask)} of {name} counts rows, and shows row"
                f" {_places(q)[differ[0][-2]]} of {read} other keys than of {trained}, as many as were trained;"
                " allowed: a length with which as many are read, or another mask."
            )


def check_kept(experiment: Experiment, told: Tokens, context: int, step: Int[np.ndarray, "... S"], steps: bool) -> None:
    """Raise ConfigError where rows that are read once, each at its `step`, would come out otherwise than all at once.

    `steps` is whether the architecture has a way to.
    """
    if not steps:
        raise ConfigError(
            f"cached: the architecture {experiment.config.model.architecture} keeps nothing of earlier rows; allowed:"
            " cached=False."
        )
    for name, operator, mask, q, k in _attentions(experiment, told, context):
        if not operator.steps:
            raise ConfigError(
                f"cached: the operator {canonical(operator)} of {name} has no step; allowed: cached=False."
            )
        later = step[..., None, _places(k)] > step[..., _places(q), None]
        found = np.argwhere(np.asarray(visible(operator, mask, q, k)) & later)
        if len(found):
            i, j = _places(q)[found[0][-2]], _places(k)[found[0][-1]]
            raise ConfigError(
                f"cached: the mask {canonical(mask)} of {name} lets row {i} see row {j}, which is generated after it;"
                " allowed: cached=False, or a mask under which rows see none that come later."
            )


def _attentions(experiment: Experiment, told: Tokens, context: int) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
    return experiment.architecture.attentions(experiment.blueprint, told.told_context(context), context)


def _places(tokens: Tokens) -> Int[np.ndarray, "T"]:
    """Which rows of the sequence these are."""
    return np.asarray(tokens.index).reshape(-1, tokens.length)[0]
