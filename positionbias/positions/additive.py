"""Position schemes that act on the embeddings, and the scheme that does nothing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.positions.base import Dims, Matrix, Parameters, PositionScheme, needs_even
from positionbias.spec import ConfigError, member, require
from positionbias.tokens import Tokens


def sinusoids(position: jax.Array, width: int, base: float) -> Float[jax.Array, "... T D"]:
    """Sines in even and cosines in odd features of position * base^(-2m/width), in float32."""
    frequency = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = position[..., None].astype(jnp.float32) * frequency
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*position.shape, width)


@member("positions", "none")
@dataclasses.dataclass(frozen=True)
class NoPosition(PositionScheme):
    """No position information (NoPE, Haviv et al. 2022, arXiv 2203.16634); order can enter by the mask alone."""

    known_as = ("nope",)


@member("positions", "learned")
@dataclasses.dataclass(frozen=True)
class Learned(PositionScheme):
    """A trained table of one vector a position, added to the embeddings.

    `length` rows; None makes the table as long as the longest sequence of the task's conditions.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        good = self.length is None or 1 <= self.length <= 65536
        require(good, "length", self.length, "None or a whole number from 1 to 65536")

    def check(self, dims: Dims) -> None:
        if self.length is not None and self.length < dims.length:
            raise ConfigError(
                f"learned.length = {self.length} is shorter than the task's longest sequence;"
                f" allowed: None or a whole number from {dims.length}."
            )

    def embedding_parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {"table": Matrix((self.length or dims.length, dims.width), "position", dims.width)}

    def embed(self, x: jax.Array, tokens: Tokens, params: Parameters) -> jax.Array:
        return x + params["table"][jnp.asarray(tokens.position)].astype(x.dtype)


@member("positions", "sinusoidal")
@dataclasses.dataclass(frozen=True)
class Sinusoidal(PositionScheme):
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, section 3.5).

    Feature 2m is sin(t * base^(-2m/D)), feature 2m+1 its cosine, times `scale`.
    """

    base: float = 10000.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.base > 1, "base", self.base, "a number above 1")
        require(self.scale > 0, "scale", self.scale, "a number above 0")

    def check(self, dims: Dims) -> None:
        needs_even("sinusoidal", dims.width, "model.width")

    def embed(self, x: jax.Array, tokens: Tokens, params: Parameters) -> jax.Array:
        table = sinusoids(jnp.asarray(tokens.position), x.shape[-1], self.base)
        return x + (self.scale * table).astype(x.dtype)


@member("positions", "one_hot")
@dataclasses.dataclass(frozen=True)
class OneHot(PositionScheme):
    """A one-hot code of the position in the last features of the stream, which hold nothing else (Reddy 2023).

    Of `slots` features; None takes as many as the longest sequence of the task's conditions has positions. Position t
    lights the feature t from the end. The inputs fill the features before. Reddy (arXiv 2312.03002) moves the whole
    sequence by a random number of slots each time; that is this code with a random assignment of positions.
    """

    slots: int | None = None

    def __post_init__(self) -> None:
        good = self.slots is None or 1 <= self.slots <= 65536
        require(good, "slots", self.slots, "None or a whole number from 1 to 65536")

    def check(self, dims: Dims) -> None:
        if dims.length >= dims.width:
            raise ConfigError(
                f"one_hot needs a feature of the stream for each of {dims.length} positions and some for the inputs,"
                f" got model.width = {dims.width}; allowed: whole numbers from {dims.length + 1}."
            )
        if self.slots is not None and not dims.length <= self.slots < dims.width:
            raise ConfigError(
                f"one_hot.slots = {self.slots} does not fit {dims.length} positions and model.width = {dims.width};"
                f" allowed: None or a whole number from {dims.length} to {dims.width - 1}."
            )

    def own_features(self, dims: Dims) -> int:
        return self.slots or dims.length

    def embed(self, x: jax.Array, tokens: Tokens, params: Parameters) -> jax.Array:
        width = x.shape[-1]
        return x + jax.nn.one_hot(width - 1 - jnp.asarray(tokens.position), width, dtype=x.dtype)
