"""A vector of the whole context, made by a small encoder, stands in front of the sequence."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Int, Mapped
from positionbias.masks.base import Mask, attended, compose, reach
from positionbias.masks.order import Bidirectional
from positionbias.models.added import AddsARow, at, begin, opened
from positionbias.models.base import Model, own_inputs, visible
from positionbias.models.block import Stack, activated
from positionbias.models.dense import Dense
from positionbias.models.ends import Embedding, Readout
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Sites
from positionbias.operators.base import Operator
from positionbias.spec import ConfigError, member, require
from positionbias.tokens import Tokens


class ContextualTokenModel(Model):
    """Embedding, encoder over the context, its mean through an MLP, and the stack over T + 1 rows."""

    def __init__(self, blueprint: Blueprint, encoder_layers: int, concatenated: bool, noise: Noise) -> None:
        width = blueprint.config.width
        self.concatenated, self.activation = concatenated, blueprint.config.activation
        self.masks, self.masks_encoder = blueprint.masks, (Bidirectional(),) * encoder_layers
        self.embedding = Embedding(blueprint, noise)
        self.encoder = Stack(blueprint, encoder_layers, width, noise)
        self.first = Dense(blueprint, "mlp_in", self.encoder.width_out, width, noise)
        self.second = Dense(blueprint, "mlp_out", width, width - self.embedding.own_features, noise)
        self.stack = Stack(blueprint, blueprint.config.layers, width, noise)
        self.readout = Readout(blueprint, (1 + concatenated) * self.stack.width_out, noise)

    def forward(self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites) -> jax.Array:
        def contextual(x: jax.Array, tokens: Tokens) -> jax.Array:
            context = tokens.cut(0, context_length)
            encoded = self.encoder(x[:, :context_length], context, self.masks_encoder, site.under("encoder"))
            valid = jnp.asarray(context.valid)[..., None]
            total = jnp.sum(jnp.where(valid, encoded, 0), axis=1, keepdims=True, dtype=jnp.float32)
            mean = total / jnp.maximum(jnp.sum(valid, axis=-2, keepdims=True), 1)
            return self.second(activated(self.first(mean.astype(x.dtype)), self.activation))

        x, told = opened(self.embedding, inputs, tokens, 0, contextual, site)
        x = self.stack.norm(self.stack.layers(x, told, self.masks, site))
        first, x = x[:, :1], x[:, 1:]
        x = jnp.concatenate([x, jnp.broadcast_to(first, x.shape)], axis=-1) if self.concatenated else x
        return self.readout(site("final", x), self.embedding)


@member("architectures", "contextual_token")
@dataclasses.dataclass(frozen=True)
class ContextualToken(AddsARow):
    """A bidirectional encoder reads the context; the mean of what it says, through an MLP, is a row in front.

    Causal2Vec (Lin et al. 2025, arXiv 2507.23386), with an encoder that is trained with the rest. The encoder reads the
    same embeddings and takes the operators and position schemes of the first `encoder_layers` layers; `model.mask` is
    that of the T + 1 rows of the stack. `concatenated` lets the readout read each row beside the row in front.
    """

    encoder_layers: int = 1
    concatenated: bool = True

    def __post_init__(self) -> None:
        require(self.encoder_layers >= 1, "encoder_layers", self.encoder_layers, "a whole number from 1")

    def check(self, blueprint: Blueprint) -> None:
        most = blueprint.config.layers
        if self.encoder_layers > most:
            raise ConfigError(
                f"model.architecture: encoder_layers = {self.encoder_layers} is more than the stack's layers, whose"
                f" operators and position schemes the encoder takes; allowed: 1 to {most}."
            )

    def create(self, blueprint: Blueprint, noise: Noise) -> Model:
        return ContextualTokenModel(blueprint, self.encoder_layers, self.concatenated, noise)

    def attentions(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int
    ) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
        told = self.told(tokens, context_length)
        context, encoder = told.cut(1, context_length + 1), blueprint.operators[: self.encoder_layers]
        layers = zip(blueprint.operators, blueprint.masks, strict=True)
        return [
            *(
                (f"encoder layer {i}", operator, Bidirectional(), context, context)
                for i, operator in enumerate(encoder)
            ),
            *((f"layer {i}", operator, mask, told, told) for i, (operator, mask) in enumerate(layers)),
        ]

    def mask_field(self, name: str) -> str | None:
        return None if name.startswith("encoder") else super().mask_field(name)

    def held(self, name: str, tokens: Tokens, context_length: int) -> Int[np.ndarray, "S"]:
        """The encoder's rows stand for none: only the row in front is made of them."""
        found = super().held(name, tokens, context_length)
        return np.full_like(found, -1) if name.startswith("encoder") else found

    def outside(self, tokens: Tokens, context_length: int) -> Bool[np.ndarray, "S S"]:
        """The row in front is made of the context, and all read it where it is `concatenated`."""
        pooled = np.zeros((tokens.length + 1, tokens.length + 1), bool)
        pooled[0, 1 : context_length + 1] = tokens.valid[:context_length]
        pooled[:, 0] = self.concatenated
        return pooled

    def reach(self, blueprint: Blueprint, tokens: Tokens, context_length: int, inputs: int | None = None) -> Mapped:
        carries = blueprint.config.residual != "none"
        attentions = self.attentions(blueprint, tokens, context_length)
        seen = [visible(operator, mask, q, k) for _, operator, mask, q, k in attentions]
        encoded = reach(seen[: self.encoder_layers], carries, own_inputs(tokens, inputs)[:context_length])
        pooled = compose(tokens.valid[None, :context_length], encoded)
        rows: Mapped = begin(0, tokens.length, inputs) | compose(at(0, tokens.length), pooled)
        for layer in seen[self.encoder_layers :]:
            rows = attended(layer, rows, rows, carries)
        return rows[1:] | rows[:1] if self.concatenated else rows[1:]
