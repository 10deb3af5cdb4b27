"""One layer: attention, optionally cross attention, and an MLP, with every switch of the theory papers as config.

Modules are thin: they hold parameters and call pure functions of arrays. Nothing mutates in the forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from positionbias.arrays import Float, Int, Tree
from positionbias.masks.base import Mask
from positionbias.models.apart import NOTHING, each_added, over_heads, read_apart
from positionbias.models.dense import Dense
from positionbias.models.kept import Kept, kept_with
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Scoped, Sites
from positionbias.operators.asked import Asked, some_rows
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
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


class Attention(nnx.Module):
    """Queries from one stream, keys and values from the same (self) or another (cross), mixed by the operator.

    `qk="merged"` has one matrix A a head, score x A x'; `ov="merged"` one matrix a head after mixing the stream
    itself; `ov="identity"` none at all, the heads' mixes side by side. Without `own_keys` the matrices of keys and
    values are lent by another attention at every call.
    """

    def __init__(
        self, blueprint: Blueprint, layer: int, width: int, width_kv: int, noise: Noise, own_keys: bool = True
    ) -> None:
        config = blueprint.config
        self.operator, self.position = blueprint.operators[layer], blueprint.positions[layer]
        self.heads, self.head_size = config.heads, blueprint.head_size
        size = self.heads * self.head_size
        merged = config.qk == "merged"
        self.query = Dense(blueprint, "query", width, self.heads * width_kv if merged else size, noise)
        self.key = Dense(blueprint, "key", width_kv, size, noise) if own_keys and not merged else None
        mixed = size if config.ov == "factorised" else self.heads * width_kv
        factorised = config.ov == "factorised"
        self.value = Dense(blueprint, "value", width_kv, size, noise) if own_keys and factorised else None
        projects = config.ov == "merged" or (config.ov == "factorised" and config.output_projection)
        kind = "value" if config.ov == "merged" else "output"
        self.output = Dense(blueprint, kind, mixed, config.width, noise) if projects else None
        self.width_out = mixed if self.output is None else config.width
        dims = dataclasses.replace(
            blueprint.dims,
            width=width,
            head_size=width_kv if merged else self.head_size,
            value_size=self.head_size if factorised else width_kv,
        )
        self.table = blueprint.create_all(self.position.layer_parameters(dims), noise)
        self.own = blueprint.create_all(declared(self.operator, dims), noise)

    def __call__(
        self,
        x: Float[jax.Array, "B T D"],
        stream: Float[jax.Array, "B S E"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        site: Scoped,
        lender: Attention | None = None,
        apart: Mapping[str, jax.Array] = NOTHING,
    ) -> Float[jax.Array, "B T W"]:
        """`apart` holds the normed "query", "key" and "value" inputs [B, T, N, D] of heads that differ from `x`."""
        q = self.query.each(apart["query"]) if "query" in apart else self._queries(x)
        k, v = (self if lender is None else lender).keys_values(stream, apart)
        q, k, v = site("query", q), site("key", k), site("value", v)
        more = self.operator.projected(x, stream, values(self.own))
        return self._mixed(self.operator, q, k, v, tokens_q, tokens_k, mask, site, more)

    def step(self, x: jax.Array, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, kept: Kept, site: Scoped) -> jax.Array:
        """Some rows `x` of a sequence, with its keys and values kept; see `Operator.step`."""
        return self._mixed(self.operator.step, self._queries(x), kept.key, kept.value, tokens_q, tokens_k, mask, site)

    def ask(self, x: jax.Array, tokens_q: Tokens, asked: Crossed, site: Scoped) -> jax.Array:
        """Some rows `x` of a decoder, of what was read of another sequence: no row of a call reads another of them."""
        stream, tokens_k, mask, kept = asked
        more = self.operator.projected(x, stream, values(self.own))
        given = self._queries(x), kept.key, kept.value, tokens_q, tokens_k, mask, site
        return self._mixed(self.operator, *given, more)

    def advance(self, x: jax.Array, asked: Asked, state: Tree, site: Scoped) -> tuple[jax.Array, Tree]:
        """The next rows `x` of a sequence, by what the operator holds of those before; see `Operator.advance`."""
        q, (k, v), own = self._queries(x), self.keys_values(x), values(self.own)
        told = Placed(self.position, values(self.table)), own | self.operator.projected(x, x, own), site
        mixed, state = self.operator.advance(q, k, v, asked, *told, state)
        return self._joined(mixed, site), state

    def keys_values(
        self, stream: Float[jax.Array, "B S E"], apart: Mapping[str, jax.Array] = NOTHING
    ) -> tuple[jax.Array, jax.Array]:
        """Keys [B, S, N, H] and values [B, S, N, K] of the stream, or of what each head reads apart."""

        def made(dense: Dense | None, name: str) -> jax.Array:
            if name in apart:
                return apart[name] if dense is None else dense.each(apart[name])
            return over_heads(stream, self.heads) if dense is None else self._heads(dense(stream))

        return made(self.key, "key"), made(self.value, "value")

    def _mixed(
        self,
        mix: Callable[..., jax.Array],
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        site: Scoped,
        more: Parameters | None = None,
    ) -> jax.Array:
        position = Placed(self.position, values(self.table))
        mixed = mix(q, k, v, tokens_q, tokens_k, mask, position, values(self.own) | (more or {}), site)
        return self._joined(mixed, site)

    def _joined(self, mixed: jax.Array, site: Scoped) -> jax.Array:
        """What all heads together give."""
        mixed, output = site("heads", mixed), self.output
        if site.wanted("head_outputs"):
            added = each_added(mixed, None if output is None else output.weight[...])
            total = jnp.sum(site("head_outputs", added), axis=2)
            return site("output", total if output is None else output.shifted(total))
        joined = mixed.reshape(*mixed.shape[:2], -1)
        return site("output", joined if output is None else output(joined))

    def _queries(self, x: jax.Array) -> jax.Array:
        return self.query(x).reshape(*x.shape[:2], self.heads, -1)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, self.head_size)


class StreamMixing(nnx.Module):
    """An operator that reads the stream itself, in attention's place: no matrices but its own parameters."""

    def __init__(self, blueprint: Blueprint, layer: int, width: int, noise: Noise) -> None:
        self.operator, self.width_out = blueprint.operators[layer], width
        dims = dataclasses.replace(blueprint.dims, width=width)
        self.own = blueprint.create_all(declared(self.operator, dims), noise)

    def __call__(
        self,
        x: Float[jax.Array, "B T D"],
        stream: Float[jax.Array, "B T D"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        site: Scoped,
    ) -> Float[jax.Array, "B T D"]:
        return site("output", self.operator.mix(x, tokens_q, mask, values(self.own), site))

    def advance(self, x: jax.Array, asked: Asked, state: Tree, site: Scoped) -> tuple[jax.Array, Tree]:
        """The next rows `x` of a sequence; see `Operator.advance_stream`."""
        mixed, state = self.operator.advance_stream(x, asked, values(self.own), site, state)
        return site("output", mixed), state


def declared(operator: Operator, dims: Dims) -> dict[str, Matrix]:
    """The parameters of an operator; where it cannot have them of these sizes the error names the field."""
    try:
        return operator.parameters(dims)
    except ConfigError as error:
        raise ConfigError(f"model.operator: {error}") from None


def values(params: nnx.Dict) -> Parameters:
    """The arrays of parameters, by name."""
    return {name: value[...] for name, value in params.items()}


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
        self.cross = Attention(blueprint, layer, width, width_encoder, noise) if width_encoder is not None else None
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
        if isinstance(self.attention, Attention):
            names = ("query",) if memory else ("query", "key", "value")  # memory is of several inputs
            apart = read_apart(reads, self.norm_attention, self.attention.heads, under, names)
            x = self._join(x, self.attention(*told, apart=apart))
        else:
            x = self._join(x, self.attention(*told))
        if self.cross is not None:
            assert self.norm_cross is not None
            assert encoded is not None
            assert tokens_encoded is not None
            assert mask_cross is not None
            under = site.under("cross")
            reads = under("input", x)
            told = self.norm_cross(reads), encoded, tokens, tokens_encoded, mask_cross, under
            apart = read_apart(reads, self.norm_cross, self.cross.heads, under, ("query",))
            x = self._join(x, self.cross(*told, apart=apart))
        return self._fed(some_rows(x, rows), site)

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
# Of an encoder: what it gives, its tokens, the mask on them, and a layer's keys and values of it.
Crossed = tuple[jax.Array, Tokens, Mask, Kept]


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
        """The stream after the last norm; of the last MLP on, `rows` alone, where they are told."""
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
