"""The two ends of a model: inputs into the stream, and the stream into outputs."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from positionbias.arrays import Float, Shaped, rows_times
from positionbias.models.dense import Dense
from positionbias.models.parameters import Blueprint, Noise
from positionbias.positions.base import Matrix
from positionbias.spec import ConfigError, canonical
from positionbias.tokens import Tokens


class Embedding(nnx.Module):
    """Tokens or vectors into the stream, with the position schemes that act on embeddings."""

    def __init__(self, blueprint: Blueprint, noise: Noise) -> None:
        config, size = blueprint.config, blueprint.input
        self.inputs, self.dtype = config.inputs, jnp.dtype(blueprint.dtype)
        kind = "tokens" if config.inputs in ("learned", "one_hot") else "vectors"
        if size.kind != kind:
            fitting = "'learned' or 'one_hot'" if size.kind == "tokens" else "'vector' or 'identity'"
            raise ConfigError(
                f"model.inputs: {config.inputs!r} reads {kind}, but the task's inputs are {size.kind};"
                f" allowed: {fitting}."
            )
        self.position = blueprint.positions[0]
        self.own_features = self.position.own_features(blueprint.dims)
        if config.inputs in ("one_hot", "identity") and config.width != size.size + self.own_features:
            position = canonical(self.position)
            more = f" and {self.own_features} of the position scheme {position}" if self.own_features else ""
            raise ConfigError(
                f"model.width = {config.width} does not fit model.inputs = {config.inputs!r};"
                f" allowed: {size.size + self.own_features}, the size of the task's inputs{more}."
            )
        width = config.width - self.own_features
        self.size = size.size
        table = Matrix((size.size, width), "embedding", width)
        self.table = blueprint.create(table, noise) if config.inputs == "learned" else None
        self.map = Dense(blueprint, "embedding", size.size, width, noise) if config.inputs == "vector" else None
        self.params = blueprint.create_all(self.position.embedding_parameters(blueprint.dims), noise)

    def __call__(self, inputs: Shaped[jax.Array, "B T *Din"], tokens: Tokens) -> Float[jax.Array, "B T D"]:
        if self.inputs == "learned":
            assert self.table is not None
            x = self.table[...].astype(self.dtype)[inputs]
        elif self.inputs == "one_hot":
            x = jax.nn.one_hot(inputs, self.size, dtype=self.dtype)
        else:
            x = inputs.astype(self.dtype)
            x = self.map(x) if self.map is not None else x
        return self.placed(x, tokens)

    def placed(self, x: Float[jax.Array, "B T E"], tokens: Tokens) -> Float[jax.Array, "B T D"]:
        """Vectors, with features left for the position scheme, as they are told their positions."""
        params = {name: value[...] for name, value in self.params.items()}
        x = jnp.pad(x, ((0, 0), (0, 0), (0, self.own_features))) if self.own_features else x
        return self.position.embed(x, tokens, params) if self.position.embeds else x


class Readout(nnx.Module):
    """The stream into outputs, float32 [B, T, V]."""

    def __init__(self, blueprint: Blueprint, width: int, noise: Noise) -> None:
        config, size = blueprint.config, blueprint.output.size
        self.kind = config.readout
        hidden = config.width
        if self.kind == "tied" and (config.inputs != "learned" or blueprint.input != blueprint.output):
            raise ConfigError(
                f"model.readout: 'tied' needs model.inputs = 'learned' and outputs over the input vocabulary, got"
                f" inputs {config.inputs!r}; allowed: linear, mlp, none."
            )
        own = blueprint.positions[0].own_features(blueprint.dims)
        if self.kind == "tied" and own:
            raise ConfigError(
                f"model.readout: 'tied' needs a token table as wide as the stream, of which the position scheme"
                f" {canonical(blueprint.positions[0])} has {own} features for itself; allowed: linear, mlp."
            )
        fits = {"tied": config.width, "none": size}.get(self.kind)
        if fits is not None and width != fits:
            raise ConfigError(
                f"model.readout: {self.kind!r} needs a stream {fits} wide at the end, got {width};"
                f" allowed: linear, mlp."
            )
        sizes = [width, *[hidden] * config.readout_layers] if self.kind == "mlp" else [width]
        self.layers = nnx.List([Dense(blueprint, "readout", a, b, noise) for a, b in itertools.pairwise(sizes)])
        self.last = Dense(blueprint, "readout", sizes[-1], size, noise) if self.kind in ("linear", "mlp") else None

    def __call__(self, x: Float[jax.Array, "B T D"], embedding: Embedding) -> Float[jax.Array, "B T V"]:
        if self.kind == "tied":
            assert embedding.table is not None
            x = rows_times(x, embedding.table[...].T)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        found = x if self.last is None else self.last(x)
        return found.astype(jnp.promote_types(found.dtype, jnp.float32))
