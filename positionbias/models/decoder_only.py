"""One stack of layers that reads the whole sequence."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from positionbias.arrays import Int, Mapped, Tree
from positionbias.masks.base import Mask, reach
from positionbias.models.base import Architecture, Model, own_inputs, visible
from positionbias.models.block import Stack
from positionbias.models.ends import Embedding, Readout
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Sites
from positionbias.operators.asked import taken
from positionbias.operators.base import Operator
from positionbias.spec import member
from positionbias.tokens import Tokens


class DecoderOnlyModel(Model):
    """Embedding, stack, readout."""

    def __init__(self, blueprint: Blueprint, noise: Noise) -> None:
        self.masks = blueprint.masks
        self.embedding = Embedding(blueprint, noise)
        self.stack = Stack(blueprint, blueprint.config.layers, blueprint.config.width, noise)
        self.readout = Readout(blueprint, self.stack.width_out, noise)

    def forward(self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites) -> jax.Array:
        return self.of_rows(inputs, tokens, context_length, site, None)

    def of_rows(
        self,
        inputs: jax.Array,
        tokens: Tokens,
        context_length: int,
        site: Sites,
        rows: Int[np.ndarray, "Q"] | None,
    ) -> jax.Array:
        x = site("embedding", self.embedding(inputs, tokens))
        return self.readout(self.stack(x, tokens, self.masks, site, rows=rows), self.embedding)

    def step(
        self, inputs: jax.Array, rows: jax.Array, tokens: Tokens, context_length: int, kept: Tree
    ) -> tuple[jax.Array, Tree]:
        x, kept = self.stack.step(self.embedding(inputs, taken(tokens, rows)), rows, tokens, self.masks, kept, Sites())
        return self.readout(x, self.embedding), kept


@member("architectures", "decoder_only")
@dataclasses.dataclass(frozen=True)
class DecoderOnly(Architecture):
    """One stack of layers over the whole sequence; the mask says what each row sees."""

    steps = True
    spares = 1

    def create(self, blueprint: Blueprint, noise: Noise) -> Model:
        return DecoderOnlyModel(blueprint, noise)

    def attentions(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int
    ) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
        layers = zip(blueprint.operators, blueprint.masks, strict=True)
        return [(f"layer {i}", operator, mask, tokens, tokens) for i, (operator, mask) in enumerate(layers)]

    def reach(self, blueprint: Blueprint, tokens: Tokens, context_length: int, inputs: int | None = None) -> Mapped:
        layers = zip(blueprint.operators, blueprint.masks, strict=True)
        seen = [visible(operator, mask, tokens, tokens) for operator, mask in layers]
        return reach(seen, blueprint.config.residual != "none", own_inputs(tokens, inputs))
