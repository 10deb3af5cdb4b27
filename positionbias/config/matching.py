"""Configs of equal size: the value of a field at which one config has as many parameters, or FLOPs, as another.

A difference between two models may come from their sizes alone; a comparison names what it held equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from positionbias import spec
from positionbias.config.build import Experiment, build
from positionbias.config.cli import apply_overrides
from positionbias.config.resolve import leaves, resolve
from positionbias.models.sites import Sites
from positionbias.spec import ConfigError

FIELDS = ("model.width", "model.mlp_width", "model.layers")
QUANTITIES = {"parameters": "trained parameters", "compute": "forward FLOPs a sequence"}
CLOSE = 0.01  # of the reference: what is called matched
SKIPPED = 16  # values in a row that a config may refuse before the search gives up


def parameters(experiment: Experiment) -> int:
    """How many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(experiment.abstract, nnx.Param)))


def compute(experiment: Experiment) -> int:
    """FLOPs of a forward pass over one sequence of the first condition, as the compiler counts them here.

    A loop inside an operator is counted once, however often it runs.
    """
    condition, task = experiment.task.conditions()[0], experiment.task
    tokens, context_length = task.tokens(condition), task.context_length(condition)
    tokens = experiment.assigned(tokens, context_length, jax.random.split(jax.random.key(0), 1))
    graph, weights = nnx.split(experiment.abstract)
    size, length = experiment.blueprint.input, task.length(condition)
    inputs = (
        jax.ShapeDtypeStruct((1, length), np.int32)
        if size.kind == "tokens"
        else jax.ShapeDtypeStruct((1, length, size.size), np.float32)
    )

    def forward(weights: Any, inputs: jax.Array) -> jax.Array:
        return nnx.merge(graph, weights)(inputs, tokens, context_length, Sites())  # type: ignore[no-any-return]

    told = jax.jit(forward).lower(weights, inputs).compile().cost_analysis()
    if not isinstance(told, Mapping) or "flops" not in told:
        raise ConfigError("--by: 'compute' is not told by this device's compiler; allowed: parameters.")
    return round(told["flops"])


MEASURES = {"parameters": parameters, "compute": compute}


@dataclasses.dataclass(frozen=True)
class Match:
    """The value found, and of both configs what was matched and what was not, by the names of QUANTITIES."""

    field: str
    value: int
    by: str
    found: dict[str, int]
    wanted: dict[str, int]

    @property
    def close(self) -> bool:
        """Whether it is near enough to be called matched."""
        return abs(self.found[self.by] - self.wanted[self.by]) <= CLOSE * self.wanted[self.by]

    def lines(self) -> list[str]:
        """The match as a table, and the override to use."""
        rows = [("", "config", "reference", "difference", "")]
        for name, what in QUANTITIES.items():
            found, wanted = self.found[name], self.wanted[name]
            difference = f"{100 * (found - wanted) / wanted:+.2f} %"
            reached = "matched" if self.close else "the nearest there is"
            rows.append((what, str(found), str(wanted), difference, reached if name == self.by else "not looked for"))
        wide = [max(len(row[i]) for row in rows) for i in range(5)]
        told = [
            "  ".join([row[0].ljust(wide[0]), *(row[i].rjust(wide[i]) for i in (1, 2, 3)), row[4]]).rstrip()
            for row in rows
        ]
        others = [field for field in FIELDS if field != self.field]
        more = [] if self.close else [f"--field {' or '.join(others)} may come nearer"]
        return [*told, f"use --config.{self.field}={self.value}", *more]


def matched(raw: Mapping[str, Any], reference: Mapping[str, Any], by: str, field: str) -> Match:
    """The value of `field` at which the config `raw` comes nearest to `reference`, both as files give them.

    Raises ConfigError where no value can match.
    """
    for flag, what, name, allowed in (("--by", "quantity", by, QUANTITIES), ("--field", "field", field, FIELDS)):
        if name not in allowed:
            raise spec.unknown(flag, what, name, allowed)
    try:
        base = build(resolve(reference))
    except ConfigError as error:
        raise ConfigError(f"--reference: {error}") from None
    wanted = {name: measure(base) for name, measure in MEASURES.items()}
    value = _Search(raw, field, by, wanted[by]).value()
    found = build(resolve(apply_overrides(raw, {field: value})))
    return Match(field, value, by, {name: measure(found) for name, measure in MEASURES.items()}, wanted)


class _Search:
    """Bisection over the values of a field, in steps, of which the config may refuse some."""

    def __init__(self, raw: Mapping[str, Any], field: str, by: str, wanted: int) -> None:
        self.raw, self.field, self.by, self.wanted = raw, field, by, wanted
        config = resolve(raw)
        model, name = config.model, field.removeprefix("model.")
        # A width that the heads do not divide is refused; stepping by heads leaves these out.
        self.step = model.heads if name == "width" and model.head_size is None else 1
        self.most = leaves()[field].field.metadata["most"] // self.step
        self.now = (getattr(model, name) or 4 * model.width) // self.step, MEASURES[by](build(config))
        self.refusal = ""

    def allowed(self, start: int, below: int) -> tuple[int, int] | None:
        """The first number of steps from `start` that the config allows, and its count; None if none is `below`."""
        for steps in range(start, min(below, start + SKIPPED)):
            try:
                config = resolve(apply_overrides(self.raw, {self.field: steps * self.step}))
                return steps, MEASURES[self.by](build(config))
            except ConfigError as error:
                self.refusal = str(error)
        return None

    def value(self) -> int:
        """The value whose count is nearest; of two as near the smaller."""
        if self.now[1] == self.wanted:
            return self.now[0] * self.step
        low, high = (self.now, self._above()) if self.now[1] < self.wanted else (None, self.now)
        first, last = low[0] + 1 if low else 1, high[0]
        while first < last:
            start = (first + last) // 2
            middle = self.allowed(start, last)
            if middle is None:
                last = start
            elif middle[1] < self.wanted:
                low, first = middle, middle[0] + 1
            else:
                high, last = middle, start
        if low is None and high[1] > self.wanted:
            raise ConfigError(
                f"{self.field}: {self._has(high)}, the fewest that it can have, and the reference has {self.wanted};"
                " allowed: another --field, or a larger reference."
            )
        near = [found for found in (low, high) if found is not None]
        return min(near, key=lambda found: abs(found[1] - self.wanted))[0] * self.step

    def _above(self) -> tuple[int, int]:
        """A value whose count is the reference's or more."""
        high = self.now
        while high[1] < self.wanted:
            low, high_or_none = high, self.allowed(min(2 * high[0], self.most), self.most + 1)
            if high_or_none is None or high_or_none[0] == low[0]:
                why = f"larger values are refused: {self.refusal}" if self.refusal else "no value is larger."
                raise ConfigError(f"{self.field}: {self._has(low)}, the reference has {self.wanted}, and {why}")
            high = high_or_none
            if high[1] == low[1]:
                raise ConfigError(
                    f"{self.field}: {self._has(low)}, whatever the value, and the reference has {self.wanted}; allowed:"
                    " another --field."
                )
        return high

    def _has(self, found: tuple[int, int]) -> str:
        return f"with {found[0] * self.step} the config has {found[1]} {QUANTITIES[self.by]}"
