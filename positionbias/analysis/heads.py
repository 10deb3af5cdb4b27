"""What analyses of heads share: taking heads out, some of all, and gates that are learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, sites
from positionbias.arrays import Bool, Float, Key, Tree
from positionbias.models import edits
from positionbias.spec import require

HEADS = "layers.*.attention.heads"  # each head's mix of values
FAR = 4.0  # gates are pushed no further than the sigmoid of this
MOST = 100_000
DRAWS = 8  # of random heads


class Gating(Analysis):
    """What analyses share that learn gates of heads, sigmoid(a): by `updates` steps of a `batch` each, at a `rate`.

    `weight` is that of the push on gates, and numbers are means over `seeds`.
    """

    weight: float
    updates: int
    seeds: int
    rate: float
    batch: int

    any_rows = True
    draws = True

    def __post_init__(self) -> None:
        require(0 < self.weight <= 1000, "weight", self.weight, "a number above 0, up to 1000")
        require(0 < self.rate <= 1000, "rate", self.rate, "a number above 0, up to 1000")
        for name in ("updates", "seeds", "batch"):
            require(1 <= getattr(self, name) <= MOST, name, getattr(self, name), f"a whole number from 1 to {MOST}")

    def reads(self) -> tuple[str, ...]:
        return (HEADS,)


def drawn_gates(key: Key[jax.Array, ""], layers: list[int], heads: int) -> Float[jax.Array, "L N"]:
    """a of gates that are drawn evenly."""
    even = jax.random.uniform(key, (len(layers), heads), minval=0.01, maxval=0.99)
    return jnp.log(even / (1 - even))


def openness(a: Float[jax.Array, "L N"]) -> Float[jax.Array, ""]:
    """What a weight pushes: the mean of a, of which nothing counts beyond `FAR`."""
    return jnp.mean(jnp.clip(a, -FAR, FAR))


def without(layers: list[int], chosen: Bool[jax.Array, "L N"]) -> dict[str, Any]:
    """The edit that sets the outputs of these heads to 0."""
    return {name: edits.zero(heads=chosen[i]) for i, name in enumerate(sites(layers, HEADS))}


def gated(layers: list[int], gates: Float[jax.Array, "L N"]) -> dict[str, Any]:
    """The edit that multiplies the outputs of heads by gates."""
    return {name: edits.scale(gates[i][:, None]) for i, name in enumerate(sites(layers, HEADS))}


def top(scores: Float[jax.Array, "L N"], count: int) -> Bool[jax.Array, "L N"]:
    """The `count` heads of the highest scores, the first of equal ones."""
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    return jnp.zeros(scores.size, bool).at[order[:count]].set(True).reshape(scores.shape)


def others(key: Key[jax.Array, ""], taken: Bool[jax.Array, "L N"], count: int) -> Bool[jax.Array, "L N"]:
    """`count` heads at random that are not among those taken."""
    draw = jax.random.uniform(key, taken.shape)
    return top(jnp.where(taken, -1.0, draw), count) & ~taken


def dealt(function: Callable[[Bool[jax.Array, "L N"]], Tree], chosen: Bool[jax.Array, "L N"], key: jax.Array) -> Tree:
    """What `function` makes of as many random heads of all as are chosen, the mean over eight draws."""

    def one(key: jax.Array) -> Tree:
        return function(jax.random.permutation(key, chosen.reshape(-1)).reshape(chosen.shape))

    return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.lax.map(one, jax.random.split(key, DRAWS)))
