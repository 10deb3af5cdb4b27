"""What every attention of a model asks of its operator, and the refusal of an operator that cannot give it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Set
from typing import NamedTuple

import numpy as np

from positionbias import spec
from positionbias.config.fields import read_by_mask
from positionbias.masks.base import Mask
from positionbias.masks.order import Bidirectional, Causal
from positionbias.models.base import visible
from positionbias.operators.base import Operator, Pattern
from positionbias.spec import ConfigError
from positionbias.tokens import Tokens


class Place(NamedTuple):
    """An attention of a model: its name, the config field of its mask, None where no field sets it, and the rest."""

    name: str
    field: str | None
    operator: Operator
    mask: Mask
    q: Tokens
    k: Tokens

    @property
    def under(self) -> str:
        """The mask, as a sentence tells it."""
        return f"{self.field or 'the mask'} {'= ' if self.field else ''}{spec.canonical(self.mask)}"


def check(places: Iterable[Place]) -> None:
    """Every operator can take its mask's pattern, and lets nothing through that the mask forbids.

    Of several patterns that are lacking one is told that no mask would change: cross attention, say, before the
    encoder's own, which might be causal.
    """
    refused: tuple[Place, Pattern] | None = None
    needed: dict[Operator, set[Pattern]] = {}
    found = [(place, np.asarray(place.mask.dense(place.q, place.k))) for place in places]
    asked = [_pattern(place.operator, place.q, place.k, allowed) for place, allowed in found]
    for (place, _), pattern in zip(found, asked, strict=True):
        needed.setdefault(place.operator, set()).add(pattern)
    for (place, allowed), pattern in zip(found, asked, strict=True):
        if pattern not in place.operator.patterns:
            if not _in_any_form(place.operator, pattern):
                check_pattern(place.operator, pattern, place.name, needed=needed[place.operator])
            refused = refused or (place, pattern)
        elif refused is None:
            _check_mixed(place, allowed)
    if refused is not None:
        (name, field, operator, *_), pattern = refused
        check_pattern(operator, pattern, name, field, f" under {refused[0].under}", needed[operator])


def check_pattern(
    operator: Operator,
    pattern: Pattern,
    name: str,
    field: str | None = "model.mask",
    under: str = "",
    needed: Set[Pattern] = frozenset(),
) -> None:
    """Raise ConfigError where the operator does not work as the pattern that the attention `name` has.

    `field` is that of its mask, None where no field sets it, `under` the end of what is said of it, and `needed` are
    the patterns that the model asks of the operator, here and elsewhere.
    """
    if pattern in operator.patterns:
        return
    kind = pattern.replace("_", " ")
    if not _in_any_form(operator, pattern):
        kind = kind.partition(" ")[2]
        allowed = ["model.architecture = decoder_only"] if kind == "cross" else []
    else:
        allowed = [f"{field} = {'bidirectional' if pattern.startswith('causal') else 'causal'}"] if field else []
    other = _other_form(operator)
    if other is not None and {pattern, *needed} <= other.patterns:
        allowed.append(f"model.operator = {spec.canonical(other)}")
    raise ConfigError(
        f"model.operator: {spec.canonical(operator)} does not work as {kind} attention, which {name} needs{under}, as"
        f" {operator.lacking(pattern)}; allowed: {', '.join([*allowed, ''])}{'or ' if allowed else ''}an operator that"
        " does, such as softmax."
    )


def _in_any_form(operator: Operator, pattern: Pattern) -> bool:
    """Whether the operator works as such self, or such cross attention, causal or not."""
    kind = pattern.rpartition("_")[2]
    return any(one.endswith(kind) for one in operator.patterns)


def _other_form(operator: Operator) -> Operator | None:
    """The operator with another `causal`, if it has that argument and both of its values."""
    if "causal" not in spec.arguments(type(operator)):
        return None
    try:
        return dataclasses.replace(operator, causal=not operator.causal)  # type: ignore[type-var, attr-defined]
    except ConfigError:
        return None


def _pattern(operator: Operator, q: Tokens, k: Tokens, allowed: np.ndarray) -> Pattern:
    """The pattern that an attention has; of two that it has, one that the operator works as, in another form at least.

    It is both causal and noncausal where every key is seen and none stands behind a query: an encoder's by a decoder.
    """
    causal = not np.any(allowed & ~np.asarray(Causal().dense(q, k)))
    everything = (allowed == np.asarray(Bidirectional().dense(q, k))).all()
    own = q.length == k.length and np.array_equal(q.index, k.index)
    fits: list[Pattern] = []
    if causal:
        fits.append("causal_self" if own else "causal_cross")
    if everything or not causal:
        fits.append("noncausal_self" if own else "noncausal_cross")
    forms = [one.patterns for one in (operator, _other_form(operator)) if one is not None]
    return next((one for patterns in forms for one in fits if one in patterns), fits[0])


def _check_mixed(place: Place, allowed: np.ndarray) -> None:
    """The operator mixes what the mask allows, as it says, and no more."""
    operator, mask, q, k = place.operator, place.mask, place.q, place.k
    why = operator.refuses(mask, q, k)
    if why:
        raise ConfigError(
            f"model.operator: {spec.canonical(operator)} does not mix in {place.name} what {place.under} allows: {why}."
        )
    beyond = np.argwhere(np.asarray(visible(operator, mask, q, k)) & ~allowed)
    if len(beyond):
        i, j = beyond[0]
        why = operator.goes_beyond(allowed, beyond)
        why += _in_pieces(q) if why and "segment" in read_by_mask(mask, q, k) else ""
        raise ConfigError(
            f"model.operator: {spec.canonical(operator)} lets position {j} influence position {i} in {place.name},"
            f" which {place.under} forbids{': ' if why else ''}{why}; allowed: a mask that contains what it mixes, or"
            " an operator that honours every mask, such as softmax."
        )


def _in_pieces(tokens: Tokens) -> str:
    """Which segment is not in one piece, the end of a sentence; empty if all are."""
    begins = tokens.segment[np.append(True, np.diff(tokens.segment) != 0)]
    found, counts = np.unique(begins, return_counts=True)
    if counts.max() == 1:
        return ""
    return f" (segment {found[counts > 1][0]} is in {counts[counts > 1][0]} pieces)"
