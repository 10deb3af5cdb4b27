"""An encoder over the context and a decoder over the rest, with a mask on each of the three attentions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Int, Mapped, Tree
from positionbias.masks.base import Mask, attended, compose, reach
from positionbias.masks.order import Bidirectional
from positionbias.models.attention import Attention
from positionbias.models.base import Architecture, Model, own_inputs, visible
from positionbias.models.block import Stack
from positionbias.models.ends import Embedding, Readout
from positionbias.models.kept import Kept
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Sites
from positionbias.operators.asked import taken
from positionbias.operators.base import Operator
from positionbias.spec import ConfigError, canonical, member, require
from positionbias.tokens import Tokens


class EncoderDecoderModel(Model):
    """One embedding for the whole sequence; the encoder reads 0..C-1, the decoder C..T-1 and the encoder's output."""

    def __init__(self, blueprint: Blueprint, layers: int, encoder: Mask, cross: Mask, noise: Noise) -> None:
        config = blueprint.config
        self.masks, self.masks_encoder, self.mask_cross = blueprint.masks, (encoder,) * layers, cross
        self.embedding = Embedding(blueprint, noise)
        self.encoder = Stack(blueprint, layers, config.width, noise)
        self.decoder = Stack(blueprint, config.layers, config.width, noise, width_encoder=self.encoder.width_out)
        self.readout = Readout(blueprint, self.decoder.width_out, noise)

    def forward(self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites) -> jax.Array:
        outputs = self._decoded(inputs, tokens, context_length, site, None)
        return jnp.pad(outputs, ((0, 0), (context_length, 0), (0, 0)))

    def of_rows(
        self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites, rows: Int[np.ndarray, "Q"]
    ) -> jax.Array:
        if rows.min() < context_length:  # rows of the context, whose outputs are zero
            return super().of_rows(inputs, tokens, context_length, site, rows)
        return self._decoded(inputs, tokens, context_length, site, rows - context_length)

    def _decoded(
        self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites, rows: Int[np.ndarray, "Q"] | None
    ) -> jax.Array:
        """Outputs of the decoder's rows, all or some."""
        x = site("embedding", self.embedding(inputs, tokens))
        context = tokens.cut(0, context_length)
        rest = tokens.cut(context_length, tokens.length)
        encoded = self.encoder(x[:, :context_length], context, self.masks_encoder, site.under("encoder"))
        told = site, encoded, context, self.mask_cross
        return self.readout(self.decoder(x[:, context_length:], rest, self.masks, *told, rows), self.embedding)

    def step(
        self, inputs: jax.Array, rows: jax.Array, tokens: Tokens, context_length: int, kept: Tree
    ) -> tuple[jax.Array, Tree]:
        x, site = self.embedding(inputs, taken(tokens, rows)), Sites()
        context, rest = tokens.cut(0, context_length), tokens.cut(context_length, tokens.length)
        if kept is None:
            encoded = self.encoder(x[:, :context_length], context, self.masks_encoder, site.under("encoder"))
            crosses = [block.cross for block in self.decoder.blocks if block.cross is not None]
            made = (Kept(*cross.keys_values(encoded)) if isinstance(cross, Attention) else None for cross in crosses)
            kept = None, (encoded, tuple(made))
            x, rows = x[:, context_length:], rows[:, context_length:]
        own, read = kept
        encoded, kept_by_layer = read
        mask = self.mask_cross.bind(rest, context)
        crossed = tuple((encoded, context, mask, one) for one in kept_by_layer)
        x, own = self.decoder.step(x, rows - context_length, rest, self.masks, own, site, crossed)
        return self.readout(x, self.embedding), (own, read)


@member("architectures", "encoder_decoder")
@dataclasses.dataclass(frozen=True)
class EncoderDecoder(Architecture):
    """An encoder over the context (0..C-1) and a decoder over the rest, joined by cross attention.

    `model.mask` is the mask of the decoder's self-attention. Encoder layer i takes the operator and position scheme
    of decoder layer i; `encoder_layers` is None for as many as the decoder has. Cross attention has the layer's
    operator too, so one that reads nothing but what comes before it in its own sequence, as most recurrences do, has
    no place here ("Operators and patterns" in BUILD.md).
    """

    steps = True
    spares = 2  # the last layer's own and its cross attention

    encoder_mask: Mask = Bidirectional()
    cross_mask: Mask = Bidirectional()
    encoder_layers: int | None = None

    def __post_init__(self) -> None:
        count = self.encoder_layers
        require(count is None or count >= 1, "encoder_layers", count, "None or a whole number from 1")

    def check(self, blueprint: Blueprint) -> None:
        most = blueprint.config.layers
        if (self.encoder_layers or 0) > most:
            raise ConfigError(
                f"model.architecture: encoder_layers = {self.encoder_layers} is more than the decoder's layers, whose"
                f" operators and position schemes the encoder takes; allowed: 1 to {most}."
            )

    def create(self, blueprint: Blueprint, noise: Noise) -> Model:
        layers = self.encoder_layers or blueprint.config.layers
        return EncoderDecoderModel(blueprint, layers, self.encoder_mask, self.cross_mask, noise)

    def first_row(self, context_length: int) -> int:
        return context_length

    def attentions(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int
    ) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
        if not context_length:
            raise ConfigError(
                f"model.architecture: {canonical(self)} has an encoder for the context, and the task has none; allowed:"
                " decoder_only, or a task with a context."
            )
        context, rest = tokens.cut(0, context_length), tokens.cut(context_length, tokens.length)
        found = []
        for i in range(self.encoder_layers or blueprint.config.layers):
            found.append((f"encoder layer {i}", blueprint.operators[i], self.encoder_mask, context, context))
        for i, (operator, mask) in enumerate(zip(blueprint.operators, blueprint.masks, strict=True)):
            found.append((f"decoder layer {i}", operator, mask, rest, rest))
            found.append((f"cross attention of decoder layer {i}", operator, self.cross_mask, rest, context))
        return found

    def mask_field(self, name: str) -> str:
        which = {"encoder": "encoder_mask", "cross": "cross_mask"}.get(name.split()[0])
        return "model.mask" if which is None else f"model.architecture.{which}"

    def reach(self, blueprint: Blueprint, tokens: Tokens, context_length: int, inputs: int | None = None) -> Mapped:
        carries, rest = blueprint.config.residual != "none", tokens.cut(context_length, tokens.length)
        seen = {
            name: visible(op, mask, q, k) for name, op, mask, q, k in self.attentions(blueprint, tokens, context_length)
        }
        layers = self.encoder_layers or blueprint.config.layers
        begin = own_inputs(tokens, inputs)
        encoder_rows = reach([seen[f"encoder layer {i}"] for i in range(layers)], carries, begin[:context_length])
        decoder_rows: Mapped = begin[context_length:]
        for i in range(blueprint.config.layers):
            decoder_rows = attended(seen[f"decoder layer {i}"], decoder_rows, decoder_rows, carries)
            crossing, asking = seen[f"cross attention of decoder layer {i}"], decoder_rows
            if blueprint.operators[i].mixes_queries:
                asking = attended(rest.rows().valid & rest.columns().valid, decoder_rows, decoder_rows, carries)
            decoder_rows = attended(crossing, asking, encoder_rows, carries)
        # One under the other, by products: numpy's concatenate would not take jax arrays that are being traced.
        own = own_inputs(tokens, None)
        return compose(own[:, :context_length], encoder_rows) | compose(own[:, context_length:], decoder_rows)
