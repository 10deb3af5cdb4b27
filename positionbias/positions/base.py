"""The position-scheme protocol: how order is told to the model.

A scheme overrides what it uses of `embed`, `rotate`, `bias` or `looked_up`, and `products`; the others do nothing. All
are pure functions of arrays, and read of the tokens what the scheme says it `reads`. A scheme declares the parameters
of `embed` in `embedding_parameters` and those of the others, which every layer has of its own, in `layer_parameters`;
the model creates, trains and hands them back.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int
from positionbias.spec import ConfigError
from positionbias.tokens import Tokens

Parameters = dict[str, jax.Array]
Side = Literal["query", "key"]


@dataclasses.dataclass(frozen=True)
class Dims:
    """The sizes a scheme or operator may need: stream width D, heads N, head size H, longest position seen + 1."""

    width: int
    heads: int
    head_size: int
    length: int
    value_size: int | None = None  # of a head's value, where it is not H
    stream_width: int | None = None  # of the stream that keys and values are made of, where it is not D

    @property
    def values(self) -> int:
        """K, the size of a head's value."""
        return self.value_size or self.head_size

    @property
    def read(self) -> int:
        """E, the width of the stream that keys and values are made of."""
        return self.stream_width or self.width


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A parameter to create: its shape, its kind (which `model.init` and `model.frozen` speak of), and fan-in.

    A kind that is not a field of `model.init` names its `initializer` here and is always trained.
    """

    shape: tuple[int, ...]
    kind: str
    fan_in: int
    initializer: str | None = None


class PositionScheme:
    """How order is told to the model."""

    axis = "positions"
    reads: ClassVar[frozenset[str]] = frozenset({"position"})  # the fields of tokens that matter to it

    def check(self, dims: Dims) -> None:
        """Raise ConfigError if the scheme cannot serve these sizes."""

    def own_features(self, dims: Dims) -> int:
        """How many features of the stream, its last, the embedding leaves at zero for `embed` to fill."""
        return 0

    def embedding_parameters(self, dims: Dims) -> dict[str, Matrix]:
        """The parameters of `embed`, by name; the model has them once."""
        return {}

    def layer_parameters(self, dims: Dims) -> dict[str, Matrix]:
        """The parameters of `rotate`, `bias` and `products`, by name; every attention has its own."""
        return {}

    def embed(self, x: Float[jax.Array, "... T D"], tokens: Tokens, params: Parameters) -> jax.Array:
        """Act on the embeddings, once, before the first layer."""
        return x

    def rotate(
        self, x: Float[jax.Array, "... T N H"], tokens: Tokens, params: Parameters, side: Side
    ) -> Float[jax.Array, "... T N H"]:
        """Act on queries or keys; called for each side with its own tokens."""
        return x

    def bias(self, q: Tokens, k: Tokens, heads: int, params: Parameters) -> jax.Array | None:
        """What is added to the scaled score, [..., N, T, S] for `q` rows and `k` columns; None adds nothing."""
        return self.looked_up(jnp.asarray(q.position) - jnp.asarray(k.position), heads, params)

    def looked_up(
        self, away: Int[jax.Array, "... T S"], heads: int, params: Parameters
    ) -> Float[jax.Array, "... N T S"] | None:
        """The bias, where it is looked up by how far each key is behind its query: by more than arithmetic.

        Kernels then hold a number for each difference, where they would else have one for each pair.
        """
        return None

    def products(
        self,
        q: Float[jax.Array, "... T N H"],
        k: Float[jax.Array, "... S N H"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        params: Parameters,
    ) -> Float[jax.Array, "... N T S"] | None:
        """What stands for q . k, in float32, where no rotation of each side alone can say it; None is the product."""
        return None

    @property
    def embeds(self) -> bool:
        """Whether the scheme acts on embeddings."""
        return type(self).embed is not PositionScheme.embed

    @property
    def rotates(self) -> bool:
        """Whether the scheme acts on queries and keys."""
        return type(self).rotate is not PositionScheme.rotate

    @property
    def biases(self) -> bool:
        """Whether the scheme adds to scores."""
        mine, base = type(self), PositionScheme
        return mine.bias is not base.bias or mine.looked_up is not base.looked_up

    @property
    def multiplies(self) -> bool:
        """Whether the scheme has products of its own."""
        return type(self).products is not PositionScheme.products


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A scheme in its place: bound to the parameters of one attention."""

    scheme: PositionScheme
    params: Parameters = dataclasses.field(default_factory=dict)

    @property
    def biases(self) -> bool:
        """Whether `bias` may add something: as a rule on tokens, [..., N, T, S] of any rows and columns."""
        return self.scheme.biases

    @property
    def multiplies(self) -> bool:
        """Whether scores are of its own making, for all pairs at once, so that no rule on tokens gives them."""
        return self.scheme.multiplies

    def rotate(self, x: Float[jax.Array, "... T N H"], tokens: Tokens, side: Side) -> jax.Array:
        """See `PositionScheme.rotate`."""
        return self.scheme.rotate(x, tokens, self.params, side)

    def bias(self, q: Tokens, k: Tokens, heads: int) -> jax.Array | None:
        """See `PositionScheme.bias`."""
        return self.scheme.bias(q, k, heads, self.params)

    def table(self, q: Tokens, k: Tokens, heads: int) -> Float[jax.Array, "N R"] | None:
        """`bias` by i - j + S - 1, for i and j from 0 to T - 1 and S - 1, if it is looked up by i - j; None if not."""
        row, column = _steady(q), _steady(k)
        own = type(self).bias is not Placed.bias or type(self.scheme).bias is not PositionScheme.bias
        if own or row is None or column is None:
            return None
        behind = np.arange(q.length + k.length - 1, dtype=np.int32) - (k.length - 1) + (row - column)
        found = self.scheme.looked_up(jnp.asarray(behind)[:, None], heads, self.params)
        return None if found is None else found[..., 0]

    def products(self, q: jax.Array, k: jax.Array, tokens_q: Tokens, tokens_k: Tokens) -> jax.Array | None:
        """See `PositionScheme.products`."""
        return self.scheme.products(q, k, tokens_q, tokens_k, self.params)


def _steady(tokens: Tokens) -> int | None:
    """The first position, if it is known that each is one more than the one before; else None."""
    told = tokens.position
    if not isinstance(told, np.ndarray) or told.ndim != 1 or told.size == 0 or (np.diff(told) != 1).any():
        return None
    return int(told[0])


def needs_even(name: str, size: int, what: str) -> None:
    """Raise ConfigError unless `size` is even."""
    if size % 2:
        raise ConfigError(f"{name} needs an even {what}, got {size}; allowed: even numbers.")
