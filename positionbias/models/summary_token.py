"""A row behind the context that sums it up for what comes after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask, attended, compose
from positionbias.models.added import AddsARow, LearnedRow, begin, opened
from positionbias.models.base import Model, visible
from positionbias.models.block import Stack
from positionbias.models.ends import Embedding, Readout
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Sites
from positionbias.operators.base import Operator
from positionbias.spec import ConfigError, canonical, member
from positionbias.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class AroundSummary(Mask):
    """The mask `inner` with a summary at index `place`, which sees all before it and is seen by all behind it.

    With `bottleneck` those behind see nothing before it. Five tokens, inner `causal`, place 2, with it:

        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        0 0 1 1 0
        0 0 1 1 1
    """

    inner: Mask
    place: int
    bottleneck: bool

    @property
    def second_share(self) -> float | None:
        return self.inner.second_share

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return dataclasses.replace(self, inner=self.inner.bind(q, k))

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        sums_up = (q.index == self.place) & (k.index <= self.place)
        is_read = (k.index == self.place) & (q.index >= self.place)
        told = (q.index != self.place) & (k.index != self.place) & self.inner.allowed(q, k)
        if self.bottleneck:
            told = told & ~((q.index > self.place) & (k.index < self.place))
        return sums_up | is_read | told

    def combined(self, show: Callable[[Any], str]) -> str:
        """The mask's text, in messages; `show` renders the inner one."""
        return f"{show(self.inner)} around the summary"


class SummaryTokenModel(Model):
    """Embedding, stack over T + 1 rows, readout of T."""

    def __init__(self, blueprint: Blueprint, bottleneck: bool, noise: Noise) -> None:
        self.masks, self.bottleneck = blueprint.masks, bottleneck
        self.embedding = Embedding(blueprint, noise)
        self.row = LearnedRow(blueprint, self.embedding, noise)
        self.stack = Stack(blueprint, blueprint.config.layers, blueprint.config.width, noise)
        self.readout = Readout(blueprint, self.stack.width_out, noise)

    def forward(self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites) -> jax.Array:
        x, told = opened(self.embedding, inputs, tokens, context_length, self.row, site)
        masks = tuple(AroundSummary(mask, context_length, self.bottleneck) for mask in self.masks)
        x = self.stack.norm(self.stack.layers(x, told, masks, site))
        x = jnp.delete(x, context_length, axis=1)
        return self.readout(site("final", x), self.embedding)


@member("architectures", "summary_token")
@dataclasses.dataclass(frozen=True)
class SummaryToken(AddsARow):
    """A trained row behind the context sees all of it; what comes after sees that row, and with `bottleneck` no more.

    The terminal summary token of V-CORE (Kang et al. 2026, arXiv 2601.01804): with a mask that lets frames see earlier
    ones only, a sink that time runs into. The context never sees it. Within the context and behind it `model.mask`
    rules, and where there is no `bottleneck` between the two.
    """

    bottleneck: bool = True

    def place(self, context_length: int) -> int:
        return context_length

    def create(self, blueprint: Blueprint, noise: Noise) -> Model:
        return SummaryTokenModel(blueprint, self.bottleneck, noise)

    def attentions(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int
    ) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
        if context_length == tokens.length:
            raise ConfigError(
                f"model.architecture: {canonical(self)} sums the context up for what comes after, and the task has no"
                " row behind its context; allowed: decoder_only, or a task that has."
            )
        told = self.told(tokens, context_length)
        masks = [AroundSummary(mask, context_length, self.bottleneck) for mask in blueprint.masks]
        layers = zip(blueprint.operators, masks, strict=True)
        return [(f"layer {i}", operator, mask, told, told) for i, (operator, mask) in enumerate(layers)]

    def reach(self, blueprint: Blueprint, tokens: Tokens, context_length: int, inputs: int | None = None) -> Mapped:
        carries = blueprint.config.residual != "none"
        rows: Mapped = begin(context_length, tokens.length, inputs)
        for _, operator, mask, q, k in self.attentions(blueprint, tokens, context_length):
            rows = attended(visible(operator, mask, q, k), rows, rows, carries)
        return compose(begin(context_length, tokens.length).T, rows)
