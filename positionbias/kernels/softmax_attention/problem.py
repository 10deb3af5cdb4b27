"""What a driver is asked to compute: one attention, checked, with its rules split for tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Int, Mapped
from positionbias.kernels.rules import Rule

Stat = Literal["lse", "received", "entropy", "mean_position", "block_mass"]
STATS: tuple[Stat, ...] = get_args(Stat)
NOTHING_SEEN = -1e30  # the log-sum-exp of a row that sees no key: finite, and lost against any other


class Stats(NamedTuple):
    """Statistics of an attention's weights a, before dropout; None for those not asked for. All have gradients.

    A row that sees no key has weight 0 everywhere: entropy and mean position 0, and the log-sum-exp -1e30.
    """

    lse: Float[jax.Array, "B N T"] | None = None  # log of the sum of exp(score) over visible keys
    received: Float[jax.Array, "B N S"] | None = None  # attention received by each key: the sum over queries of a
    entropy: Float[jax.Array, "B N T"] | None = None  # of each query's weights, in nats
    mean_position: Float[jax.Array, "B N T"] | None = None  # the mean of the key's index under the weights
    block_mass: Float[jax.Array, "B N P M"] | None = None  # the sum of a over each tile of `block_sizes`


class Dropout(NamedTuple):
    """Weights dropped at random: each with probability `rate`, by a hash of `seed` and its place."""

    rate: float
    seed: Int[jax.Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """softmax(score(scale q . k)) v over the allowed pairs; `[B, T, N, H]` is the layout of q, k and v."""

    q: Float[jax.Array, "B T N H"]
    k: Float[jax.Array, "B S G H"]
    v: Float[jax.Array, "B S G K"]
    scale: float
    allowed: Rule | None
    score: Rule | None
    tiles: Callable[[tuple[int, int]], Any] | None  # the classes of tiles of these sizes, where a mask tells them
    pairs: Callable[[], Bool[Mapped, "... T S"]] | None  # all that `allowed` allows, where it reads nothing traced
    stats: tuple[Stat, ...]
    normalise: bool
    dropout: Dropout | None
    block_sizes: tuple[int, int]
    plain: Literal["none", "causal"] | None  # what the mask is, where a library knows it; None for any other

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, T, S, N, G."""
        return (self.q.shape[0], self.q.shape[1], self.k.shape[1], self.q.shape[2], self.k.shape[2])

    @property
    def score_dtype(self) -> Any:
        """Of scores, weights and statistics: float32, or float64 for such queries."""
        return jnp.promote_types(self.q.dtype, jnp.float32)

    @property
    def dense_because(self) -> str | None:
        """Why an operand of a rule has T x S entries."""
        found = [rule.dense_because for rule in (self.allowed, self.score) if rule is not None]
        return next((why for why in found if why is not None), None)
