"""One layer: attention, optionally cross attention, and an MLP, with every switch of the theory papers as config.

Modules are thin: they hold parameters and call pure functions of arrays. Nothing mutates in the forward pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from positionbias.arrays import Float, Int, Tree
from positionbias.masks.base import Mask
from positionbias.models.apart import read_apart
from positionbias.models.attention import Attention, Crossed, StreamMixing, StreamReading
from positionbias.models.dense import Dense
from positionbias.models.kept import Kept, kept_with
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Scoped, Sites
from positionbias.operators.asked import Asked, some_rows, some_tokens
from positionbias.spec import ConfigError
from positionbias.tokens import Tokens


class Norm(nnx.Module):
    """Layer norm, root-mean-square norm or nothing, computed in at least float32."""

    def __init__(self, blueprint: Blueprint, width: int) -> None:
        self.kind = blueprint.config.norm
        self.scale = nnx.Param(jnp.ones(width)) if self.kind != "none" else None
        self.shift = nnx.Param(jnp.zeros(width)) if self.kind == "layer" else None

    def __call__(self, x: Float[jax.Array, "... D"]) -> Float[jax.Array, "... D"]:
        if self.scale is None:
            return x
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-6) * self.scale[...]
        if self.shift is not None:
            y = y + self.shift[...]
        return y.astype(x.dtype)


class Mlp(nnx.Module):
    """Two matrices around a nonlinearity."""

    def __init__(self, blueprint: Blueprint, width: int, noise: Noise) -> None:
        config = blueprint.config
        hidden = config.mlp_width or 4 * config.width
        self.activation = config.activation
        self.first = Dense(blueprint, "mlp_in", width, hidden, noise)
        self.second = Dense(blueprint, "mlp_out", hidden, config.width, noise)

    def __call__(self, x: Float[jax.Array, "B T D"], site: Scoped) -> Float[jax.Array, "B T W"]:
        hidden = self.first(x)
        return site("output", self.second(site("hidden", activated(hidden, self.activation))))


def activated(x: jax.Array, activation: str) -> jax.Array:
    """`model.activation`."""
    return jax.nn.relu(x) if activation == "relu" else jax.nn.gelu(x)


class Block(nnx.Module):
    """Attention, cross attention if `width_encoder` is given, MLP if the config has one; norm before each.

    `width` is the stream's width on entry, `width_out` on exit: they differ where the stream is concatenated.
    """

    def __init__(
        self, blueprint: Blueprint, layer: int, width: int, noise: Noise, width_encoder: int | None = None
    ) -> None:
        config = blueprint.config
        self.residual = config.residual
        self.norm_attention = Norm(blueprint, width)
        self.attention: Attention | StreamMixing = (
            Attention(blueprint, layer, width, width, noise)
            if blueprint.operators[layer].reads == "qkv"
            else StreamMixing(blueprint, layer, width, noise)
        )
        width = self._joined(width, self.attention.width_out, config.width)
        crosses = width_encoder is not None
        self.norm_cross = Norm(blueprint, width) if crosses else None
        kind = Attention if blueprint.operators[layer].reads == "qkv" else StreamReading
        self.cross: Attention | StreamReading | None = (
            None if width_encoder is None else kind(blueprint, layer, width, width_encoder, noise)
        )
        if self.cross is not None:
            width = self._joined(width, self.cross.width_out, config.width)
        self.norm_mlp = Norm(blueprint, width) if config.mlp else None
        self.mlp = Mlp(blueprint, width, noise) if config.mlp else None
        self.width_out = self._joined(width, config.width, config.width) if config.mlp else width

    def _joined(self, stream: int, added: int, width: int) -> int:
        if self.residual == "concatenate":
            return stream + added
        if added != width:
            raise ConfigError(
                f"model.residual: {self.residual!r} needs sublayers as wide as the stream ({width}), but attention"
                f" gives {added}; allowed: 'concatenate', an output projection, or heads * head size = width."
            )
        return added

    def _join(self, stream: jax.Array, added: jax.Array) -> jax.Array:
        if self.residual == "add":
            return stream + added
        return added if self.residual == "none" else jnp.concatenate([stream, added], axis=-1)

    def __call__(
        self,
        x: Float[jax.Array, "B T D"],
        tokens: Tokens,
        mask: Mask,
        site: Scoped,
        encoded: Float[jax.Array, "B C E"] | None = None,
        tokens_encoded: Tokens | None = None,
        mask_cross: Mask | None = None,
        memory: tuple[Float[jax.Array, "B S D"], Tokens] | None = None,
        rows: Int[np.ndarray, "Q"] | None = None,
    ) -> Float[jax.Array, "B T W"]:
        """The stream after this layer, of all rows or `rows`. Keys and values are of `memory`, or its normed input."""
        under = site.under("attention")
        reads = under("input", x)
        normed = self.norm_attention(reads)
        read, tokens_read = memory or (normed, tokens)
        told = normed, read, tokens, tokens_read, mask, under
        early = None
        if isinstance(self.attention, Attention):
            early = rows if memory is None and self.attention.operator.row_by_row else None
            names = ("query",) if memory else ("query", "key", "value")  # memory is of several inputs
            apart = read_apart(reads, self.norm_attention, self.attention.heads, under, names)
            x = self._join(some_rows(x, early), self.attention(*told, apart=apart, rows=early))
        else:
            x = self._join(x, self.attention(*told))
        if self.cross is not None:
            assert self.norm_cross is not None
            assert encoded is not None
            assert tokens_encoded is not None
            assert mask_cross is not None
            under = site.under("cross")
            reads = under("input", x)
            mask_cross = mask_cross if early is None else mask_cross.bind(tokens, tokens_encoded)
            told = self.norm_cross(reads), encoded, some_tokens(tokens, early), tokens_encoded, mask_cross, under
            if isinstance(self.cross, Attention):
                apart = read_apart(reads, self.norm_cross, self.cross.heads, under, ("query",))
                x = self._join(x, self.cross(*told, apart=apart))
            else:
                x = self._join(x, self.cross(*told))
        return self._fed(x if early is rows else some_rows(x, rows), site)

    def step(
        self,
        x: Float[jax.Array, "B T D"],
        asked: Asked,
        kept: Held | None,
        site: Scoped,
        crossed: Crossed | None = None,
    ) -> tuple[Float[jax.Array, "B T W"], Held]:
        """The stream of some rows after this layer, and what it keeps of all read so far; `kept` is None before any."""
        normed, under = self.norm_attention(x), site.under("attention")
        if self.attention.operator.carries:
            added, kept = self.attention.advance(normed, asked, kept, under)
        else:
            assert isinstance(self.attention, Attention)
            kept = kept_with(kept, *self.attention.keys_values(normed), asked)
            added = self.attention.step(normed, asked.tokens_q, asked.tokens, asked.mask, kept, under)
        x = self._join(x, added)
        if crossed is not None:
            assert self.cross is not None
            assert self.norm_cross is not None
            x = self._join(x, self.cross.ask(self.norm_cross(x), asked.tokens_q, crossed, site.under("cross")))
        return self._fed(x, site), kept

    def _fed(self, x: jax.Array, site: Scoped) -> jax.Array:
        """Past the MLP."""
        if self.mlp is not None:
            assert self.norm_mlp is not None
            under = site.under("mlp")
            x = self._join(x, self.mlp(self.norm_mlp(under("input", x)), under))
        return site("stream", x)


Held = Kept | Tree  # a layer's keys and values of the rows read so far, or the state that its operator made of them


class Stack(nnx.Module):
    """Blocks one after another, and the last norm."""

    def __init__(
        self, blueprint: Blueprint, layers: int, width: int, noise: Noise, width_encoder: int | None = None
    ) -> None:
        blocks = []
        for layer in range(layers):
            blocks.append(Block(blueprint, layer, width, noise, width_encoder))
            width = blocks[-1].width_out
        self.blocks = nnx.List(blocks)
        self.norm = Norm(blueprint, width)
        self.width_out = width

    def __call__(
        self,
        x: Float[jax.Array, "B T D"],
        tokens: Tokens,
        masks: tuple[Mask, ...],
        site: Sites | Scoped,
        encoded: Float[jax.Array, "B C E"] | None = None,
        tokens_encoded: Tokens | None = None,
        mask_cross: Mask | None = None,
        rows: Int[np.ndarray, "Q"] | None = None,
    ) -> Float[jax.Array, "B T W"]:
        """The stream after the last norm; of the last layer's queries on, `rows` alone, where they are told."""
        return site("final", self.norm(self.layers(x, tokens, masks, site, encoded, tokens_encoded, mask_cross, rows)))

    def layers(
        self,
        x: Float[jax.Array, "B T D"],
        tokens: Tokens,
        masks: tuple[Mask, ...],
        site: Sites | Scoped,
        encoded: Float[jax.Array, "B C E"] | None = None,
        tokens_encoded: Tokens | None = None,
        mask_cross: Mask | None = None,
        rows: Int[np.ndarray, "Q"] | None = None,
    ) -> Float[jax.Array, "B T W"]:
        """The stream after the last block, before the last norm."""
        for layer, (block, mask) in enumerate(zip(self.blocks, masks, strict=True)):
            told = x, tokens, mask, site.under(f"layers.{layer}"), encoded, tokens_encoded, mask_cross
            x = block(*told, rows=rows if layer == len(self.blocks) - 1 else None)
        return x

    def step(
        self,
        x: Float[jax.Array, "B T D"],
        rows: Int[jax.Array, "B T"],
        tokens: Tokens,
        masks: tuple[Mask, ...],
        kept: tuple[Held, ...] | None,
        site: Sites | Scoped,
        crossed: tuple[Crossed, ...] | None = None,
    ) -> tuple[Float[jax.Array, "B T W"], tuple[Held, ...]]:
        """Some `rows` of a sequence of `tokens`, after the last norm, and what every layer keeps, with theirs."""
        after = []
        for layer, (block, mask) in enumerate(zip(self.blocks, masks, strict=True)):
            asked, under = Asked.of(rows, tokens, mask), site.under(f"layers.{layer}")
            before = None if kept is None else kept[layer]
            x, more = block.step(x, asked, before, under, None if crossed is None else crossed[layer])
            after.append(more)
        return site("final", self.norm(x)), tuple(after)
