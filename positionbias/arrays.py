"""The letter legend of every shape in this project; the page to read first.

    B  batch           sequences in a batch
    T  rows            query positions of an attention, or the length of a sequence
    S  columns         key positions of an attention
    N  heads
    H  head size
    D  width of the residual stream
    V  vocabulary, or number of output features
    L  layers
    R  replicas: independently seeded models trained side by side
    A  answers a sequence asks for
    E  evidence positions an answer needs (-1 padded)

Einsum strings use the same letters: scores are `BTNH,BSNH->BNTS`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

__all__ = ["WITHIN", "Array", "Bool", "Float", "Int", "Key", "Mapped", "Shaped", "Tree", "largest", "rows_times"]

Tree = Any  # a pytree of arrays: parameters, optimizer state, metrics
WITHIN = 0.5  # how near to its target every feature of a right answer is, where answers are vectors
Mapped = Any  # numpy or jax array: rules written with operators only take either
PIECES = 16  # of a row, whose largest entries are found side by side


def rows_times(x: Float[jax.Array, "... I"], matrix: Float[jax.Array, "I O"]) -> Float[jax.Array, "... O"]:
    """x W in the type of x, of all rows as one axis.

    With more, the gradient by W contracts more than one, for which XLA on CPUs transposes what it multiplies: a step of
    an MLP took up to 1.7 times as long.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return (rows @ matrix.astype(x.dtype)).reshape(*x.shape[:-1], matrix.shape[-1])


def largest(x: Float[jax.Array, "... S"]) -> Float[jax.Array, "... 1"]:
    """The largest of the last axis, which stays; it has no gradient.

    On a CPU of pieces first, entry by entry: XLA there takes a row one number after another, so that attention of 512
    keys took half as long again. The value is the same.
    """
    return jax.lax.platform_dependent(jax.lax.stop_gradient(x), cpu=_largest_of_pieces, default=_largest)


def _largest(x: Float[jax.Array, "... S"]) -> Float[jax.Array, "... 1"]:
    return jnp.max(x, axis=-1, keepdims=True)


def _largest_of_pieces(x: Float[jax.Array, "... S"]) -> Float[jax.Array, "... 1"]:
    size = x.shape[-1] // PIECES
    if size == 0:
        return _largest(x)
    pieces = [x[..., i * size : (i + 1) * size] for i in range(PIECES)]
    most = _largest(functools.reduce(jnp.maximum, pieces))
    rest = x[..., PIECES * size :]
    return jnp.maximum(most, _largest(rest)) if rest.shape[-1] else most
