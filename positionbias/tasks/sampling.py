"""Samplers without replacement that stay cheap on the device, under `jit` and `vmap`.

XLA sorts slowly on a CPU, and a sort an example is what a naive task would pay. Measured on two CPU cores, `vmap` over
64 (256) examples, milliseconds a batch:

    permutation      8            64           512
    ranks        0.05 (0.15)  0.23 (0.30)   20 (80)
    argsort      0.06 (0.36)  0.66 (2.07)   5.0 (20)

    distinct      8 of 64      64 of 2048     32 of 8192
    Floyd        0.21 (0.18)  0.34 (0.86)    0.22 (0.46)
    top-k        0.23 (0.38)  1.81 (5.42)    3.23 (22)
    argsort      0.72 (2.05)    22 (85)       100 (408)

    by_weight    4 of 32      64 of 128      256 of 512
    top-k        0.23 (0.37)  0.63 (1.8)     2.2 (7.1)
    ranks        0.33 (0.36)  0.70 (1.8)      37 (148)
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int, Key

RANKS_UP_TO = 128  # comparing all pairs beats XLA's sort on a CPU up to about this many numbers
NODES = 160  # of an integral; of 512 numbers, shares are right to nine digits and take a second


def permutation(key: Key[jax.Array, ""], size: int) -> Int[jax.Array, "P"]:
    """0..size-1 in uniformly random order, i32[size]."""
    bits = jax.random.bits(key, (size,))
    if size > RANKS_UP_TO:
        return jnp.argsort(bits).astype(jnp.int32)
    # The ranks of random numbers are themselves a random permutation; equal numbers keep their order.
    slot = jnp.arange(size)
    earlier = (bits[None, :] == bits[:, None]) & (slot[None, :] < slot[:, None])
    return jnp.sum((bits[None, :] < bits[:, None]) | earlier, axis=-1, dtype=jnp.int32)


def distinct(key: Key[jax.Array, ""], count: int, size: int) -> Int[jax.Array, "C"]:
    """`count` distinct numbers of 0..size-1, every ordered choice equally likely, i32[count]; 1 <= count <= size.

    Floyd's algorithm (Bentley and Floyd 1987, "A sample of brilliance"): `count` draws and comparisons, whatever the
    size. It gives a uniform set in a telling order, so the set is shuffled.
    """
    if not 1 <= count <= size:
        raise ValueError(f"cannot draw {count} distinct numbers of {size}")
    draw_key, order_key = jax.random.split(key)
    tops = jnp.arange(size - count, size, dtype=jnp.int32)
    draws = jax.random.randint(draw_key, (count,), 0, tops + 1)

    def step(i: jax.Array, chosen: jax.Array) -> jax.Array:
        taken = jnp.any(chosen == draws[i])
        return chosen.at[i].set(jnp.where(taken, tops[i], draws[i]))

    chosen = jax.lax.fori_loop(0, count, step, jnp.full((count,), -1, jnp.int32))
    return chosen[permutation(order_key, count)]


def scattered(key: Key[jax.Array, ""], blocks: int, span: int, fillers: int) -> Int[jax.Array, "B"]:
    """The first row of each of `blocks` runs of `span` rows that stand anywhere among `fillers` single rows, in order.

    Every way to place them is equally likely, i32[blocks].
    """
    number = jnp.arange(blocks, dtype=jnp.int32)
    if not fillers:
        return span * number
    chosen = distinct(key, blocks, blocks + fillers)  # among fillers and blocks, which are blocks
    rank = jnp.sum(chosen[None, :] < chosen[:, None], axis=-1)
    return jnp.zeros_like(number).at[rank].set(chosen) + (span - 1) * number


def by_weight(key: Key[jax.Array, ""], count: int, weights: tuple[float, ...]) -> Int[jax.Array, "C"]:
    """`count` distinct numbers of 0..len(weights)-1, i32[count], drawn one after another in proportion to weight.

    Each draw is from the numbers that are left. The numbers run a race over exponential times, whose rates are their
    weights, and come in the order in which they arrive (Efraimidis and Spirakis 2006).
    """
    # Minus the logarithms of the times; float32 has no exponential times short enough for a rare number to come first.
    early = jax.random.gumbel(key, (len(weights),), mode="high") + np.log(weights).astype(np.float32)
    return jax.lax.top_k(early, count)[1].astype(jnp.int32)


@functools.cache
def shares_by_weight(count: int, weights: tuple[float, ...]) -> Float[np.ndarray, "P"]:
    """The probability that a number is among those that `by_weight` draws, over `count`: they sum to 1, to rounding.

    Number i is drawn if fewer than `count` others arrive before it: an integral over its time of arrival t, by
    Gauss-Legendre quadrature in log t. How many others have arrived by t is the number of all without i, whose law is
    divided out in the direction that is stable.
    """
    rates = np.array(weights) / sum(weights)
    size = len(rates)
    if count in (1, size):
        return rates if count == 1 else np.full(size, 1 / size)
    start = count / math.e * 1e-16 ** (1 / count)  # so many have not arrived before, but for a chance below 1e-16
    nodes, share = np.polynomial.legendre.leggauss(NODES)
    span = math.log(40 / rates.min()) - math.log(start)
    time = start * np.exp(span * (1 + nodes) / 2)[:, None]
    stay = np.exp(-rates * time)  # [N, P]: not there yet at each node
    come = -np.expm1(-rates * time)

    arrived = np.zeros((len(time), size + 1))  # how many of all
    arrived[:, 0] = 1
    for i in range(size):
        arrived[:, 1:] = arrived[:, 1:] * stay[:, i, None] + arrived[:, :-1] * come[:, i, None]
        arrived[:, 0] *= stay[:, i]

    fewer = np.zeros_like(stay)  # the probability that fewer than `count` others have arrived
    upward, downward, rare = np.zeros_like(stay), np.zeros_like(stay), come < stay
    for others in range(count):
        upward = (arrived[:, others, None] - come * upward) / np.where(rare, stay, 1)
        fewer += np.where(rare, upward, 0)
    for others in range(size - 1, -1, -1):
        downward = (arrived[:, others + 1, None] - stay * downward) / np.where(rare, 1, come)
        if others < count:
            fewer += np.where(rare, 0, downward)
    integral = span / 2 * share @ (rates * time * stay * fewer)
    included = -np.expm1(-rates * start) + integral  # up to `start` nothing stands in the way
    return included / included.sum()
