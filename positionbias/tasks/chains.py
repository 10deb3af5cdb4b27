"""Chains of statements that share out slots: the order each chain stands in, and what it does to the slots."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int


def arranged(slots: Int[jax.Array, "C K"], turn: Int[jax.Array, "K"]) -> Int[jax.Array, "C K"]:
    """The slots of each chain, shared out among its steps anew: step k gets the `turn[k]`-th of them from the front."""
    rank = jnp.sum(slots[:, None] < slots[:, :, None], axis=-1)
    return jnp.sum(jnp.where(rank[:, None] == turn[:, None], slots[:, None], 0), axis=-1)


def order_rank(slots: Int[jax.Array, "K"]) -> Int[jax.Array, ""]:
    """The rank of the order that steps stand in among all orders, as a dictionary has them: 0 is their own order."""
    steps = slots.shape[0]
    overtaken = jnp.sum(jnp.triu(slots < slots[:, None], 1), axis=-1)  # how many later steps stand in front of each
    digits = np.array([math.factorial(steps - 1 - step) for step in range(steps)])
    return jnp.sum(overtaken * digits, dtype=jnp.int32)


def kept_or_reversed(rises: Bool[jax.Array, "A S"], counted: Bool[jax.Array, "A S"]) -> Int[jax.Array, "A"]:
    """0 where all steps that are counted rise, 1 where none does, -1 otherwise and where none is counted."""
    kept, reverse = jnp.all(rises | ~counted, axis=-1), jnp.all(~rises | ~counted, axis=-1)
    return jnp.where(jnp.any(counted, axis=-1), jnp.select([kept, reverse], [0, 1], -1), -1).astype(jnp.int32)


def last_slot(count: int, steps: int) -> Float[np.ndarray, "S"]:
    """How likely each of `count` slots is the last of a uniform set of `steps`; the first is so the other way."""
    return np.array([math.comb(slot, steps - 1) / math.comb(count, steps) for slot in range(count)])


def others_between(count: int, steps: int) -> Float[np.ndarray, "S"]:
    """How likely 0, 1, ... slots of others lie between the first and the last of a uniform set of `steps` slots."""
    if steps == 1:
        return np.eye(count)[0]
    found = np.zeros(count)
    for others in range(count - steps + 1):
        found[others] = (count - steps + 1 - others) * math.comb(steps - 2 + others, others) / math.comb(count, steps)
    return found
