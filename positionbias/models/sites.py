"""Sites: every interesting intermediate passes `site(name, value)`, which can record or edit it.

| site | shape | where |
|---|---|---|
| `embedding` | [B, T, D] | after token and position embedding, before the first layer and before a row is added |
| `layers.L.attention.input` | [B, T, D] | the stream that attention reads, before its norm |
| `layers.L.attention.query_input`, `.key_input`, `.value_input` | [B, T, N, D] | the same, a head each |
| `layers.L.attention.query`, `.key` | [B, T, N, H] | before rotation |
| `layers.L.attention.value` | [B, T, N, K] | |
| `layers.L.attention.scores` | [B, N, T, S] | scaled and biased, before the mask; operators that have a pattern |
| `layers.L.attention.pattern` | [B, N, T, S] | weights on values; operators that have a pattern |
| `layers.L.attention.heads` | [B, T, N, K] | each head's mix of values |
| `layers.L.attention.head_outputs` | [B, T, N, *] | what each head adds to the stream: all but a bias of the output |
| `layers.L.attention.output` | [B, T, *] | what attention adds to the stream |
| `layers.L.attention.lookahead` | [B, T] | how far each row of the operator `lookahead` looks |
| `layers.L.attention.penalty` | [B] | what an operator adds to the training loss |
| `layers.L.cross.*` | as above | cross attention of a decoder layer; T decoder rows, S encoder columns |
| `layers.L.mlp.input` | [B, T, D] | the stream that the MLP reads, before its norm |
| `layers.L.mlp.hidden`, `.output` | [B, T, *] | after the nonlinearity; what the MLP adds |
| `layers.L.stream` | [B, T, D] | the stream after layer L |
| `final` | [B, T, *] | after the last norm, before the readout, which reads it |
| `encoder.layers.L.*`, `encoder.final` | as above | the encoder of an encoder-decoder; T = C |
| `added` | [B, 1, D] | the row that contextual_token, token_prepending and summary_token add, with its position |
| `reading.layers.L.*`, `reading.final`, `asking.L.*` | as above | the two stacks of two_stacks |
| `passes.P.layers.L.*` | as above | layer L in pass P of a looped model; with memory S = (P + 1) T |

In an encoder-decoder `layers.*` and `final` hold the decoder's rows C..T-1. Where a row is added, `layers.*` have T + 1
rows, that one at 0 or, in summary_token, at C; `embedding` and `final` have the T rows of the inputs.

A model that is called with `rows`, as in training, need make no others: of decoder_only and encoder_decoder the last
layer's `mlp.*` and `stream`, and `final`, then hold these alone, and so does all from its `attention.query` on where
the operator is `row_by_row`.

An edit of an `input` changes what the part reads; the stream that goes past it is as it was. Each head is told its own
by the three sites that have heads, which come after `attention.input`; what an operator reads of the stream beside
queries, keys and values, and an operator on the stream itself, has `attention.input` alone. Keys and values have an
input where they are made of the layer's own stream: not in cross attention, the second of two stacks, or a looped model
with memory. These three and `head_outputs` are made only where they are recorded or edited.

What is done to a site that is edited is an `Edit`, of which `models.edits` has the kinds. Names recorded and edited,
and kinds of edits, are static, values are arrays. A site that is neither recorded nor edited is the identity.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.models import edits
from positionbias.models.edits import Edit
from positionbias.operators.base import SiteFunction
from positionbias.spec import ConfigError, show, unknown

Edits = Mapping[str, Edit | tuple[str, Any]]  # by names of sites, or patterns of them
BY_NAME = {"replace": edits.replace, "add": edits.add, "scale": edits.scale}  # a pair of one and a value is an edit too
PENALTIES = "*.penalty"  # what operators add to the training loss, [B] each: its mean over the batch


class Sites(SiteFunction):
    """Collects what is recorded and applies what is edited during one call of a model.

    `record` holds names or patterns with `*`; `edit` maps such to an `Edit`, or to the pairs ("replace", value),
    ("add", value) and ("scale", value), whose values broadcast against the site; several of one site act in this order,
    and what is recorded is edited. Call `check()` after the model to refuse names no site has.
    """

    def __init__(self, record: Iterable[str] = (), edit: Edits | None = None) -> None:
        if isinstance(record, str):
            raise ConfigError(f"record: {record!r} is text; allowed: a list of names of sites, such as [{record!r}].")
        self.patterns = tuple(record)
        self.recorded: dict[str, jax.Array] = {}
        self.seen: list[str] = []
        self.edit = {name: _edit(name, wanted) for name, wanted in (edit or {}).items()}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        self.seen.append(name)
        for pattern, edit in self.edit.items():
            if fnmatch.fnmatchcase(name, pattern):
                value = edit.of(name, value)
        if self._records(name):
            self.recorded[name] = value
        return value

    def wanted(self, name: str) -> bool:
        self.seen.append(name)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in (*self.edit, *self.patterns))

    def _records(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)

    def under(self, prefix: str) -> Scoped:
        """A site function whose names start with `prefix.`."""
        return Scoped(self, prefix)

    def check(self) -> None:
        """Raise ConfigError for a name or pattern, recorded or edited, that met no site."""
        for field, patterns in (("record", self.patterns), ("edit", self.edit)):
            for pattern in patterns:
                if not any(fnmatch.fnmatchcase(name, pattern) for name in self.seen):
                    raise unknown(field, "site", pattern, {_like(pattern, name) for name in self.seen})


def _edit(name: str, wanted: Any) -> Edit:
    if isinstance(wanted, Edit):
        return wanted
    if not isinstance(wanted, tuple | list) or len(wanted) != 2 or not _numbers(wanted[1]):
        kinds = ", ".join(BY_NAME)
        allowed = f"an edit of models.edits, or ({kinds}) and an array"
        raise ConfigError(f"edit[{name!r}]: {show(wanted)} is not allowed; allowed: {allowed}.")
    if wanted[0] not in BY_NAME:
        raise unknown(f"edit[{name!r}]", "kind", wanted[0], BY_NAME)
    return BY_NAME[wanted[0]](wanted[1])


def _numbers(value: object) -> bool:
    try:
        return not isinstance(value, str) and bool(jnp.issubdtype(jnp.asarray(value).dtype, jnp.number))
    except (TypeError, ValueError):
        return False


def _like(pattern: str, name: str) -> str:
    """`name` with `*` where `pattern` has it, so that a hint leaves open what the user left open."""
    wanted, parts = pattern.split("."), name.split(".")
    star = next((i for i, part in enumerate(wanted) if "*" in part), None)
    more = len(parts) - len(wanted)
    if star is None or more < 0:
        return name
    parts[star : star + more + 1] = [wanted[star]]  # a star may stand for dots as well
    made = ".".join(want if "*" in want else part for want, part in zip(wanted, parts, strict=True))
    return made if fnmatch.fnmatchcase(name, made) else name


class Scoped(SiteFunction):
    """Names of one part of the model."""

    def __init__(self, sites: SiteFunction, prefix: str) -> None:
        self.sites, self.prefix = sites, prefix

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        return self.sites(f"{self.prefix}.{name}", value)

    def wanted(self, name: str) -> bool:
        return self.sites.wanted(f"{self.prefix}.{name}")

    def under(self, prefix: str) -> Scoped:
        """A site function whose names start with `prefix.`, inside this one."""
        return Scoped(self, prefix)
