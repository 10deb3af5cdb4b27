"""A row in front of the sequence that is overwritten, layer by layer, by the last token of the context."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Mapped
from positionbias.masks.base import Mask, attended, compose
from positionbias.models.added import AddsARow, LearnedRow, at, begin, opened
from positionbias.models.base import Model, visible
from positionbias.models.block import Stack
from positionbias.models.ends import Embedding, Readout
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Sites
from positionbias.operators.base import Operator
from positionbias.spec import ConfigError, member, require
from positionbias.tokens import Tokens


class TokenPrependingModel(Model):
    """Embedding, stack over T + 1 rows, readout of T."""

    def __init__(self, blueprint: Blueprint, overwritten: range, noise: Noise) -> None:
        self.overwritten, self.masks = overwritten, blueprint.masks
        self.embedding = Embedding(blueprint, noise)
        self.row = LearnedRow(blueprint, self.embedding, noise)
        self.stack = Stack(blueprint, blueprint.config.layers, blueprint.config.width, noise)
        self.readout = Readout(blueprint, self.stack.width_out, noise)

    def forward(self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites) -> jax.Array:
        x, told = opened(self.embedding, inputs, tokens, 0, self.row, site)
        last = _last(tokens, context_length)[..., None]
        for layer, (block, mask) in enumerate(zip(self.stack.blocks, self.masks, strict=True)):
            if layer in self.overwritten:
                # A sum of one term and zeros: exact, and for a place that every example may have of its own.
                taken = jnp.sum(jnp.where(last, x[:, 1 : context_length + 1], 0), axis=1, keepdims=True)
                x = jnp.concatenate([taken, x[:, 1:]], axis=1)
            x = block(x, told, mask, site.under(f"layers.{layer}"))
        return self.readout(site("final", self.stack.norm(x)[:, 1:]), self.embedding)


@member("architectures", "token_prepending")
@dataclasses.dataclass(frozen=True)
class TokenPrepending(AddsARow):
    """A trained row in front takes the stream of the context's last token at the input of layers `start` to `stop` - 1.

    Token Prepending (Fu et al. 2025, arXiv 2412.11556), which does it to a model already trained: under a causal mask
    early tokens see what the context has come to. Padding is no last token. `stop` is None for all layers from `start`.
    """

    start: int = 1
    stop: int | None = None

    def __post_init__(self) -> None:
        require(self.start >= 0, "start", self.start, "a whole number from 0")
        allowed = f"None or a whole number from {self.start + 1}, more than start"
        require(self.stop is None or self.stop > self.start, "stop", self.stop, allowed)

    def _overwritten(self, blueprint: Blueprint) -> range:
        return range(self.start, blueprint.config.layers if self.stop is None else self.stop)

    def check(self, blueprint: Blueprint) -> None:
        layers = blueprint.config.layers
        if self.start >= layers:
            raise ConfigError(
                f"model.architecture: start = {self.start} leaves none of the {layers} layers to read the row in front;"
                f" allowed: 0 to {layers - 1}, or more model.layers."
            )
        if self.stop is not None and self.stop > layers:
            raise ConfigError(
                f"model.architecture: stop = {self.stop} is beyond model.layers = {layers}; allowed: None or"
                f" {self.start + 1} to {layers}."
            )

    def create(self, blueprint: Blueprint, noise: Noise) -> Model:
        return TokenPrependingModel(blueprint, self._overwritten(blueprint), noise)

    def attentions(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int
    ) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
        told, layers = self.told(tokens, context_length), zip(blueprint.operators, blueprint.masks, strict=True)
        return [(f"layer {i}", operator, mask, told, told) for i, (operator, mask) in enumerate(layers)]

    def outside(self, tokens: Tokens, context_length: int) -> Bool[np.ndarray, "S S"]:
        """The row in front is made of the last of the context."""
        taken = np.zeros((tokens.length + 1, tokens.length + 1), bool)
        taken[0, 1 : context_length + 1] = _last(tokens, context_length)
        return taken

    def reach(self, blueprint: Blueprint, tokens: Tokens, context_length: int, inputs: int | None = None) -> Mapped:
        carries = blueprint.config.residual != "none"
        rows: Mapped = begin(0, tokens.length, inputs)
        last, others = _last(tokens, context_length)[None], ~at(0, tokens.length)
        attentions = self.attentions(blueprint, tokens, context_length)
        for layer, (_, operator, mask, q, k) in enumerate(attentions):
            if layer in self._overwritten(blueprint):
                taken = compose(last, rows[1 : context_length + 1])
                rows = (rows & others) | compose(at(0, tokens.length), taken)
            rows = attended(visible(operator, mask, q, k), rows, rows, carries)
        return rows[1:]


def _last(tokens: Tokens, context_length: int) -> Bool[Mapped, "... C"]:
    """True at the last valid token of the context; nowhere if all of it is padding."""
    valid = tokens.valid[..., :context_length]
    order = np.arange(1, context_length + 1) * valid
    return valid & (order == order.max(axis=-1, keepdims=True))
