"""Products of decays over spans of steps, by doubling: no quotient, no difference of sums, nothing above 1.

What lies between a key and a query is a product of decays. It is split where the two lie in different halves of a
block of 2 n steps, n = 1, 2, 4 and so on: until the end of the first half, and since the beginning of the second.
Both factors are at most 1 and as precise as their last bits, however far the decays go, as e^G e^-G of sums G is not.
A number just below 1 is rounded by up to 2^-25, which adds up where many are the same. So the product over a half is e
to the sum of its logarithms, and what a chunk leaves of a state is not made of such a number (`kept`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float

NEAR, TERMS = -0.5, 16  # so many terms of the series of e^x are exact to 64 bits from there to 0


class Halves(NamedTuple):
    """Of the steps of each block of 2 n: products of decays that a pair of one step in each half is apart."""

    since: Float[jax.Array, "... blocks n X"] | None  # of second halves: from the beginning of the half to the query
    until: Float[jax.Array, "... blocks n X"] | None  # of first halves: from after the key to the end of the half


class Spans(NamedTuple):
    """Products of decays of a chunk; None for 1."""

    halves: tuple[Halves, ...]  # for n = 1, 2, 4 up to half of the chunk
    since: Float[jax.Array, "... C X"] | None  # from the beginning of the chunk to the query
    until: Float[jax.Array, "... C X"] | None  # from after the key to the end of the chunk
    total: Float[jax.Array, "... 1 X"] | None  # the logarithm of that over the whole chunk; None for 0


def times(x: jax.Array, factor: jax.Array | None) -> jax.Array:
    """The product, where None is 1."""
    return x if factor is None else x * factor


def kept(x: jax.Array, total: jax.Array | None) -> jax.Array:
    """The product with e^total, where None is 0: near 1 it is x less a small part, as precise as that part is."""
    if total is None:
        return x
    return jnp.where(total > NEAR, x + x * less_one(total), x * jnp.exp(total))


def left(total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two factors of which the products with x have e^total x as their sum, as precise as `kept`: one is 1 or 0."""
    near = total > NEAR
    return jnp.where(near, 1.0, jnp.exp(total)), jnp.where(near, less_one(total), 0.0)


@jax.custom_jvp
def less_one(x: jax.Array) -> jax.Array:
    """e^x - 1 of x up to 0, near 0 by its series: kernels for TPU have no expm1."""
    near = jnp.maximum(x, NEAR)
    found = jnp.zeros_like(near)
    for n in range(TERMS, 0, -1):
        found = near / n * (1 + found)
    return jnp.where(x > NEAR, found, jnp.exp(x) - 1)


less_one.defjvps(lambda dx, found, x: dx * jnp.exp(x))


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
    if keeps is not None:
        log_decay = jnp.where(keeps == 0, -jnp.inf, jnp.zeros_like(keeps) if log_decay is None else log_decay)
    assert log_decay is not None
    lead, width = log_decay.shape[:-2], log_decay.shape[-1]
    total = log_decay[..., None, :]
    whole = jnp.exp(total)
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
        total = half(total, 0) + half(total, 1)
        whole = jnp.exp(total)
        n *= 2
    return Spans(tuple(found), since[..., 0, :, :], until[..., 0, :, :], total[..., 0, :, :])


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
