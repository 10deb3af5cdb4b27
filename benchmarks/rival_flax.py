"""The default decoder in plain Flax, trained by one jitted call a step, as its users write it for this one model.

The modules are those of `flax.nnx`; the model is split into arrays once, as Flax advises where calls are short, and
the step gives its state up to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from positionbias import runtime
from positionbias.config import schema

EPSILON = 1e-6  # of layer norm


class Layer(nnx.Module):
    """Causal attention and an MLP, layer norm before each."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm_attention = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, use_bias=False, decode=False, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.first = nnx.Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(4 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm_attention(x), mask=mask)
        return x + self.second(nnx.gelu(self.first(self.norm_mlp(x))))


class Decoder(nnx.Module):
    """Tokens and learned positions, layers, a last norm and a matrix."""

    def __init__(self, model: schema.Model, vocabulary: int, outputs: int, length: int) -> None:
        rngs = nnx.Rngs(0)
        self.tokens = nnx.Embed(vocabulary, model.width, rngs=rngs)
        self.positions = nnx.Embed(length, model.width, rngs=rngs)
        self.layers = nnx.List([Layer(model.width, model.heads, rngs) for _ in range(model.layers)])
        self.norm = nnx.LayerNorm(model.width, epsilon=EPSILON, rngs=rngs)
        self.readout = nnx.Linear(model.width, outputs, use_bias=False, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = self.tokens(inputs) + self.positions(jnp.arange(inputs.shape[1]))
        mask = nnx.make_causal_mask(inputs)
        for layer in self.layers:
            x = layer(x, mask)
        return self.readout(self.norm(x))


class Flax:
    """The model in training, from our parameters by name, on batches of which arrays are [K, B, T]."""

    def __init__(self, config: schema.Config, params: Mapping[str, np.ndarray], batches: Any) -> None:
        model = config.model
        sizes = params["embedding.table"].shape[0], params["readout.last.weight"].shape[1]
        self._names, self._shapes = _names(model.layers), {name: x.shape for name, x in params.items()}
        graph, empty = nnx.split(Decoder(model, *sizes, len(params["embedding.params.table"])), nnx.Param)
        flat = nnx.to_flat_state(empty)
        given = [(path, leaf.replace(params[self._names[_name(path)]].reshape(leaf.shape))) for path, leaf in flat]
        self._params = jax.tree.map(jnp.array, nnx.from_flat_state(given))
        optimizer = optax.adamw(config.optimizer.learning_rate, weight_decay=0.0)
        self._state = optimizer.init(self._params)
        arrays = (np.asarray(x) for x in (batches.inputs, batches.targets, batches.weights))
        self._batches = list(zip(*arrays, strict=True))

        def mean(params: Any, batch: Any) -> jax.Array:
            inputs, targets, weights = batch
            logits = nnx.merge(graph, params)(inputs)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return jnp.sum(losses * weights) / jnp.sum(weights)

        def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
            loss, grads = jax.value_and_grad(mean)(params, batch)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        self._gradient = jax.jit(jax.grad(mean))
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self._params, self._state, self._batches[0])
        self._step = lowered.compile(runtime.step_options(jax.default_backend()))
        self.memory = int(self._step.memory_analysis().temp_size_in_bytes)

    def gradient(self) -> dict[str, np.ndarray]:
        """Of the first batch, by our names."""
        flat = nnx.to_flat_state(self._gradient(self._params, self._batches[0]))
        found = {self._names[_name(path)]: np.asarray(leaf[...]) for path, leaf in flat}
        return {name: x.reshape(self._shapes[name]) for name, x in found.items()}

    def call(self) -> list[jax.Array]:
        """A step for each batch; the losses."""
        losses = []
        for batch in self._batches:
            self._params, self._state, loss = self._step(self._params, self._state, batch)
            losses.append(loss)
        return losses

    def wait(self, made: list[jax.Array]) -> np.ndarray:
        """The losses, once they and the state are there."""
        jax.block_until_ready(self._params)
        return np.array([float(loss) for loss in made])


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _names(layers: int) -> dict[str, str]:
    """Our name of each parameter."""
    found = {
        "tokens.embedding": "embedding.table",
        "positions.embedding": "embedding.params.table",
        "norm.scale": "stack.norm.scale",
        "norm.bias": "stack.norm.shift",
        "readout.kernel": "readout.last.weight",
    }
    for i in range(layers):
        here, there = f"layers.{i}", f"stack.blocks.{i}"
        for name, ours in {"query": "query", "key": "key", "value": "value", "out": "output"}.items():
            found[f"{here}.attention.{name}.kernel"] = f"{there}.attention.{ours}.weight"
        for name in ("first", "second"):
            found[f"{here}.{name}.kernel"] = f"{there}.mlp.{name}.weight"
        for name in ("norm_attention", "norm_mlp"):
            found |= {f"{here}.{name}.scale": f"{there}.{name}.scale", f"{here}.{name}.bias": f"{there}.{name}.shift"}
    return found
