"""What architectures share that add a row to the sequence: its tokens, and what it holds of the inputs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from positionbias.arrays import Bool, Float, Int
from positionbias.models.base import Architecture
from positionbias.models.ends import Embedding
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Sites
from positionbias.positions.base import Matrix
from positionbias.spec import ConfigError, canonical
from positionbias.tokens import Tokens, joined


class AddsARow(Architecture):
    """An architecture that adds one row to the sequence, before input `place`, and takes it out of the outputs.

    To masks it is a row like others: in front, it is the first key, and so the first of the sinks or of a prefix.
    """

    def place(self, context_length: int) -> int:
        """Where the row stands among T + 1; in front unless told."""
        return 0

    def told(self, tokens: Tokens, context_length: int) -> Tokens:
        """The tokens of all T + 1 rows; refused where there is no context to hold."""
        if not context_length:
            raise ConfigError(
                f"model.architecture: {canonical(self)} needs a context for the row that it adds, and the task has"
                " none; allowed: decoder_only, or a task with a context."
            )
        return joined(tokens.parted(self.place(context_length)))

    def held(self, name: str, tokens: Tokens, context_length: int) -> Int[np.ndarray, "S"]:
        index, place = np.asarray(tokens.index), self.place(context_length)
        return np.where(index == place, -1, index - (index > place))


class LearnedRow(nnx.Module):
    """A vector of its own that stands as a row."""

    def __init__(self, blueprint: Blueprint, embedding: Embedding, noise: Noise) -> None:
        width = blueprint.config.width - embedding.own_features
        self.vector = blueprint.create(Matrix((1, width), "embedding", width), noise)

    def __call__(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        """As a row of each of the sequences `x` [B, T, D], before positions: [B, 1, E]."""
        vector = self.vector[...].astype(x.dtype)
        return jnp.broadcast_to(vector, (x.shape[0], *vector.shape))


def opened(
    embedding: Embedding,
    inputs: jax.Array,
    tokens: Tokens,
    place: int,
    row: Callable[[jax.Array, Tokens], jax.Array],
    site: Sites,
) -> tuple[Float[jax.Array, "B S D"], Tokens]:
    """The embeddings of all S = T + 1 rows, and their tokens. `row` makes the added one, [B, 1, E], of the others."""
    before, new, behind = tokens.parted(place)
    others = joined([before, behind])
    x = site("embedding", embedding(inputs, others))
    added = site("added", embedding.placed(row(x, others), new))
    return jnp.concatenate([x[:, :place], added, x[:, place:]], axis=1), joined([before, new, behind])


def at(place: int, length: int) -> Bool[np.ndarray, "S 1"]:
    """True at the added row of `length` inputs."""
    return (np.arange(length + 1) == place)[:, None]


def begin(place: int, length: int, inputs: int | None = None) -> Bool[np.ndarray, "S J"]:
    """Which of the last `inputs`, None for all, each row holds to begin with; the added row holds none.

    Of all inputs, transposed, it takes that row out.
    """
    held = np.delete(np.eye(length + 1, dtype=bool), place, axis=1)
    return held if inputs is None else held[:, length - inputs :]
