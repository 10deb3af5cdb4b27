"""Attention and what stands in its place: what of a layer mixes over positions.

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
from positionbias.models.apart import NOTHING, each_added, over_heads
from positionbias.models.dense import Dense
from positionbias.models.kept import Kept
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Scoped
from positionbias.operators.asked import Asked, some_rows, some_tokens
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import ConfigError
from positionbias.tokens import Tokens

# Of an encoder: what it gives, its tokens, the mask on them, and a layer's keys and values of it, if it makes some.
Crossed = tuple[jax.Array, Tokens, Mask, Kept | None]


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
            stream_width=width_kv,
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
        rows: Int[np.ndarray, "Q"] | None = None,
    ) -> Float[jax.Array, "B T W"]:
        """What all rows `x` read, or `rows` of them alone (`Operator.row_by_row`).

        `apart` holds the normed "query", "key" and "value" inputs [B, T, N, D] of heads that differ from `x`.
        """
        x = some_rows(x, rows)
        q = self.query.each(some_rows(apart["query"], rows)) if "query" in apart else self._queries(x)
        k, v = (self if lender is None else lender).keys_values(stream, apart)
        q, k, v = site("query", q), site("key", k), site("value", v)
        if rows is not None:
            some = some_tokens(tokens_q, rows), tokens_k, mask.bind(tokens_q, tokens_k)
            return self._mixed(self.operator.step, q, k, v, *some, site)
        more = self.operator.projected(x, stream, values(self.own))
        return self._mixed(self.operator, q, k, v, tokens_q, tokens_k, mask, site, more)

    def step(self, x: jax.Array, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, kept: Kept, site: Scoped) -> jax.Array:
        """Some rows `x` of a sequence, with its keys and values kept; see `Operator.step`."""
        return self._mixed(self.operator.step, self._queries(x), kept.key, kept.value, tokens_q, tokens_k, mask, site)

    def ask(self, x: jax.Array, tokens_q: Tokens, asked: Crossed, site: Scoped) -> jax.Array:
        """Some rows `x` of a decoder, of what was read of another sequence: no row of a call reads another of them, as
        operators that mix queries are called on all rows (`whole`)."""
        stream, tokens_k, mask, kept = asked
        assert kept is not None
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


class StreamReading(nnx.Module):
    """An operator that reads the stream of another sequence, in cross attention's place."""

    def __init__(self, blueprint: Blueprint, layer: int, width: int, width_read: int, noise: Noise) -> None:
        self.operator, self.width_out = blueprint.operators[layer], width
        dims = dataclasses.replace(blueprint.dims, width=width, stream_width=width_read)
        self.own = blueprint.create_all(declared(self.operator, dims), noise)

    def __call__(
        self,
        x: Float[jax.Array, "B T D"],
        stream: Float[jax.Array, "B S E"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        site: Scoped,
    ) -> Float[jax.Array, "B T D"]:
        read = x, stream, tokens_q, tokens_k, mask
        return site("output", self.operator.mix_across(*read, values(self.own), site))

    def ask(self, x: jax.Array, tokens_q: Tokens, asked: Crossed, site: Scoped) -> jax.Array:
        """Some rows `x` of a decoder; see `Attention.ask`."""
        stream, tokens_k, mask, _ = asked
        return self(x, stream, tokens_q, tokens_k, mask, site)


def declared(operator: Operator, dims: Dims) -> dict[str, Matrix]:
    """The parameters of an operator; where it cannot have them of these sizes the error names the field."""
    try:
        return operator.parameters(dims)
    except ConfigError as error:
        raise ConfigError(f"model.operator: {error}") from None


def values(params: nnx.Dict) -> Parameters:
    """The arrays of parameters, by name."""
    return {name: value[...] for name, value in params.items()}
