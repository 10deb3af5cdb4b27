"""Sites: every interesting intermediate passes `site(name, value)`, which can record or edit it.

| site | shape | where |
|---|---|---|
| `embedding` | [B, T, D] | after token and position embedding, before the first layer and before a row is added |
| `layers.L.attention.query`, `.key` | [B, T, N, H] | before rotation |
| `layers.L.attention.value` | [B, T, N, K] | |
| `layers.L.attention.scores` | [B, N, T, S] | scaled and biased, before the mask; operators that have a pattern |
| `layers.L.attention.pattern` | [B, N, T, S] | weights on values; operators that have a pattern |
| `layers.L.attention.heads` | [B, T, N, K] | each head's mix of values |
| `layers.L.attention.output` | [B, T, *] | what attention adds to the stream |
| `layers.L.attention.lookahead` | [B, T] | how far each row of the operator `lookahead` looks |
| `layers.L.attention.penalty` | [B] | what an operator adds to the training loss |
| `layers.L.cross.*` | as above | cross attention of a decoder layer; T decoder rows, S encoder columns |
| `layers.L.mlp.hidden`, `.output` | [B, T, *] | after the nonlinearity; what the MLP adds |
| `layers.L.stream` | [B, T, D] | the stream after layer L |
| `final` | [B, T, *] | after the last norm, before the readout, which reads it |
| `encoder.layers.L.*`, `encoder.final` | as above | the encoder of an encoder-decoder; T = C |
| `added` | [B, 1, D] | the row that contextual_token, token_prepending and summary_token add, with its position |
| `reading.layers.L.*`, `reading.final`, `asking.L.*` | as above | the two stacks of two_stacks |
| `passes.P.layers.L.*` | as above | layer L in pass P of a looped model; with memory S = (P + 1) T |

In an encoder-decoder `layers.*` and `final` hold the decoder's rows C..T-1. Where a row is added, `layers.*` have T + 1
rows, that one at 0 or, in summary_token, at C; `embedding` and `final` have the T rows of the inputs.

Names recorded and (name, kind) edited are static, edit values are arrays. A site that is neither recorded nor edited is
the identity.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from positionbias.operators.base import SiteFunction
from positionbias.spec import ConfigError, show, unknown

EditKind = Literal["replace", "add", "scale"]
EDIT_KINDS = ("replace", "add", "scale")
PENALTIES = "*.penalty"  # what operators add to the training loss, [B] each: its mean over the batch


class Sites(SiteFunction):
    """Collects what is recorded and applies what is edited during one call of a model.

    `record` holds names or patterns with `*`; `edit` maps a name to (kind, value): `replace` the value, `add` to it,
    or `scale` it. Values broadcast against the site. Call `check()` after the model to refuse names no site has.
    """

    def __init__(
        self, record: Iterable[str] = (), edit: Mapping[str, tuple[EditKind, jax.Array]] | None = None
    ) -> None:
        if isinstance(record, str):
            raise ConfigError(f"record: {record!r} is text; allowed: a list of names of sites, such as [{record!r}].")
        self.patterns = tuple(record)
        self.edit = dict(edit or {})
        self.recorded: dict[str, jax.Array] = {}
        self.seen: list[str] = []
        for name, wanted in self.edit.items():
            if not isinstance(wanted, tuple | list) or len(wanted) != 2 or not _numbers(wanted[1]):
                kinds = ", ".join(EDIT_KINDS)
                raise ConfigError(f"edit[{name!r}]: {show(wanted)} is not allowed; allowed: ({kinds}) and an array.")
            if wanted[0] not in EDIT_KINDS:
                raise unknown(f"edit[{name!r}]", "kind", wanted[0], EDIT_KINDS)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        self.seen.append(name)
        if name in self.edit:
            kind, by = self.edit[name]
            changed = by if kind == "replace" else value + by if kind == "add" else value * by
            value = jnp.broadcast_to(jnp.asarray(changed, value.dtype), value.shape)
        if self._records(name):
            self.recorded[name] = value
        return value

    def wanted(self, name: str) -> bool:
        self.seen.append(name)
        return name in self.edit or self._records(name)

    def _records(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)

    def under(self, prefix: str) -> Scoped:
        """A site function whose names start with `prefix.`."""
        return Scoped(self, prefix)

    def check(self) -> None:
        """Raise ConfigError for a recorded pattern or edited name that met no site."""
        for pattern in self.patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in self.seen):
                raise unknown("record", "site", pattern, {_like(pattern, name) for name in self.seen})
        for name in self.edit:
            if name not in self.seen:
                raise unknown("edit", "site", name, self.seen)


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
