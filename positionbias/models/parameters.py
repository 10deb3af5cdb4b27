"""Parameters: how each kind of matrix starts, and which kinds are trained."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from positionbias.arrays import Float
from positionbias.config import schema
from positionbias.masks.base import Mask
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims, Matrix, PositionScheme
from positionbias.spec import ConfigError, build, member, require
from positionbias.tasks.base import Size


class Frozen(nnx.Variable):
    """A parameter that is saved and loaded but not trained."""


class Noise:
    """Standard normals for all matrices of a model, taken in order from one draw.

    One draw instead of one a matrix: compiling the generator once is a third of the time a run takes to start. Without
    `values` it only counts what is taken.
    """

    def __init__(self, values: Float[jax.Array, "n"] | None = None) -> None:
        self.values, self.taken = values, 0

    def take(self, shape: tuple[int, ...]) -> jax.Array:
        """The next normals, in `shape`."""
        start, self.taken = self.taken, self.taken + math.prod(shape)
        if self.values is None:
            return jnp.zeros(shape)
        return self.values[start : self.taken].reshape(shape)


class Initializer:
    """How a matrix starts."""

    axis = "initializers"

    def __call__(self, noise: Noise, matrix: Matrix) -> jax.Array:
        """A float32 array of `matrix.shape`; `noise` gives standard normals to whoever wants them."""
        raise NotImplementedError


@member("initializers", "normal")
@dataclasses.dataclass(frozen=True)
class Normal(Initializer):
    """Independent Gaussians of standard deviation `std`."""

    std: float

    def __post_init__(self) -> None:
        require(self.std >= 0, "std", self.std, "a number from 0")

    def __call__(self, noise: Noise, matrix: Matrix) -> jax.Array:
        return self.std * noise.take(matrix.shape)


@member("initializers", "fan_in")
@dataclasses.dataclass(frozen=True)
class FanIn(Initializer):
    """Independent Gaussians of standard deviation scale / sqrt(fan-in), which keeps the size of a unit input."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.scale >= 0, "scale", self.scale, "a number from 0")

    def __call__(self, noise: Noise, matrix: Matrix) -> jax.Array:
        return self.scale / math.sqrt(matrix.fan_in) * noise.take(matrix.shape)


@member("initializers", "constant")
@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """Every entry is `value`."""

    value: float

    def __call__(self, noise: Noise, matrix: Matrix) -> jax.Array:
        return jnp.full(matrix.shape, self.value, jnp.float32)


@member("initializers", "identity")
@dataclasses.dataclass(frozen=True)
class Identity(Initializer):
    """`scale` times the identity; a matrix for several heads starts as one identity a head."""

    scale: float = 1.0

    def __call__(self, noise: Noise, matrix: Matrix) -> jax.Array:
        rows, columns = matrix.shape
        small, large = sorted((rows, columns))
        if large % small:
            raise ConfigError(
                f"model.init.{matrix.kind}: 'identity' cannot fill a {rows} x {columns} matrix;"
                f" allowed: fan_in, normal(std=...) or constant(value=...)."
            )
        eye = jnp.tile(jnp.eye(small), (1, large // small))
        return self.scale * (eye if rows == small else eye.T)


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """All a model is built from: its config, the members of each layer, and the sizes the task gives."""

    config: schema.Model
    masks: tuple[Mask, ...]
    positions: tuple[PositionScheme, ...]
    operators: tuple[Operator, ...]
    initializers: dict[str, Initializer]
    input: Size
    output: Size
    length: int  # largest position that is told + 1, over the task's conditions
    dtype: str = "float32"
    scale: float | Float[jax.Array, ""] = 1.0  # a factor on what `initializers` start

    @property
    def head_size(self) -> int:
        """H."""
        return self.config.head_size or self.config.width // self.config.heads

    @property
    def dims(self) -> Dims:
        """The sizes members may ask for."""
        size = self.config.width if self.config.qk == "merged" else self.head_size
        value_size = self.head_size if self.config.ov == "factorised" else self.config.width
        return Dims(self.config.width, self.config.heads, size, self.length, value_size)

    def create(self, matrix: Matrix, noise: Noise) -> nnx.Variable:
        """A new parameter, started as `model.init` says for its kind, else as the matrix itself does."""
        initializer = self.initializers.get(matrix.kind)
        if initializer is not None:
            return self.variable(self.scale * initializer(noise, matrix), matrix.kind)
        initializer = build("initializers", matrix.initializer or "", f"the initializer of {matrix.kind!r}")
        return self.variable(initializer(noise, matrix), matrix.kind)

    def create_all(self, matrices: dict[str, Matrix], noise: Noise) -> nnx.Dict:
        """New parameters by name."""
        return nnx.Dict({name: self.create(matrix, noise) for name, matrix in matrices.items()})

    def variable(self, value: jax.Array, kind: str) -> nnx.Variable:
        """A parameter that starts at `value`: an `nnx.Param`, or `Frozen` if its kind is listed in `model.frozen`."""
        return Frozen(value) if kind in self.config.frozen else nnx.Param(value)
