"""Products of decays over spans of steps, by doubling: no quotient, no difference of sums, nothing above 1.

What lies between a key and a query is a product of decays. It is split where the two lie in different halves of a
block of 2 n steps, n = 1, 2, 4 and so on: until the end of the first half, and since the beginning of the second.
Both factors are at most 1 and as precise as their last bits, however far the decays go, as e^G e^-G of sums G is not.
What a chunk leaves of a state is e to the sum of logarithms: a decay near 1 is rounded by up to 2^-25, and where
thousands of them are the same, that would add up.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float


class Halves(NamedTuple):
    """Of the steps of each block of 2 n: products of decays that a pair of one step in each half is apart."""

    since: Float[jax.Array, "... blocks n X"] | None  # of second halves: from the beginning of the half to the query
    until: Float[jax.Array, "... blocks n X"] | None  # of first halves: from after the key to the end of the half


class Spans(NamedTuple):
    """Products of decays of a chunk; None for 1."""

    halves: tuple[Halves, ...]  # for n = 1, 2, 4 up to half of the chunk
    since: Float[jax.Array, "... C X"] | None  # from the beginning of the chunk to the query
    until: Float[jax.Array, "... C X"] | None  # from after the key to the end of the chunk
    whole: Float[jax.Array, "... 1 X"] | None


def times(x: jax.Array, factor: jax.Array | None) -> jax.Array:
    """The product, where None is 1."""
    return x if factor is None else x * factor


def spans(
    log_decay: Float[jax.Array, "... C X"] | None,
    steps: int,
    inclusive: bool,
    keeps: Float[jax.Array, "... C 1"] | None = None,
) -> Spans:
    """Products of the decays of C steps, a power of two; a query is after its own decay if `inclusive`, else before.

    Where `keeps` is 0, and not 1, so is the decay, and a query is after that in any case.
    """
    if log_decay is None and keeps is None:
        return Spans((Halves(None, None),) * (steps.bit_length() - 1), None, None, None)
    decay = keeps if log_decay is None else times(jnp.exp(log_decay), keeps)
    assert decay is not None
    lead, width = decay.shape[:-2], decay.shape[-1]
    whole = decay[..., None, :]
    until = jnp.ones_like(whole)
    since = whole if inclusive else times(until, None if keeps is None else keeps[..., None, :])
    found = []
    n = 1
    while n < steps:

        def half(x: jax.Array, which: int, blocks: int = steps // (2 * n)) -> jax.Array:
            return x.reshape(*lead, blocks, 2, -1, width)[..., which, :, :]

        found.append(Halves(half(since, 1), half(until, 0)))
        since = jnp.concatenate([half(since, 0), half(since, 1) * half(whole, 0)], axis=-2)
        until = jnp.concatenate([half(until, 0) * half(whole, 1), half(until, 1)], axis=-2)
        whole = half(whole, 0) * half(whole, 1)
        n *= 2
    kept = None if keeps is None else jnp.min(keeps, axis=-2, keepdims=True)
    if log_decay is not None:
        kept = times(jnp.exp(jnp.sum(log_decay, axis=-2, keepdims=True)), kept)
    return Spans(tuple(found), since[..., 0, :, :], until[..., 0, :, :], kept)


def between(halves: tuple[Halves, ...], dtype: jnp.dtype) -> Float[jax.Array, "... blocks b b"]:
    """The product between each query and each earlier key of blocks of b = 2 ** len(halves) steps, of one channel.

    0 where the key is not earlier.
    """
    size = 2 ** len(halves)
    row, column = np.arange(size)[:, None], np.arange(size)
    if not halves or halves[0].since is None:
        return jnp.asarray(row > column, dtype)[None]
    found = jnp.zeros((size, size), dtype)
    for n, (since, until) in zip((2**i for i in range(len(halves))), halves, strict=True):
        assert since is not None
        assert until is not None
        lead, nothing = since.shape[:-3], [(0, 0)] * (since.ndim - 2)
        rows = jnp.pad(since[..., 0], [*nothing, (n, 0)]).reshape(*lead, -1, size)
        columns = jnp.pad(until[..., 0], [*nothing, (0, n)]).reshape(*lead, -1, size)
        pairs = (row // n == column // n + 1) & (row // n % 2 == 1)
        found = jnp.where(pairs, rows[..., :, None] * columns[..., None, :], found)
    return found
