"""Softmax attention that pays for keys that receive more attention than others."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Float, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import SiteFunction
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "even_softmax")
@dataclasses.dataclass(frozen=True)
class EvenSoftmax(Softmax):
    """Softmax whose training loss grows with how unevenly keys receive attention; ours.

    With c_j the attention that key j receives, summed over queries, the loss grows by `price` times the mean over heads
    of the variance of c over its squared mean, taken over keys that are no padding: 0 where all receive the same, S - 1
    where one receives it all. Under a causal mask even weights are uneven in this sense, as early keys are seen by more
    queries: that is the bias of the mask (Wu et al. 2025, arXiv 2502.01951), and what this takes away. The operator
    itself is `softmax`, and so are its outputs.
    """

    price: float = 0.0

    priced = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.price <= 1e6, "price", self.price, "a number from 0 to 1e6")

    def _told(
        self, mixed: jax.Array, stats: kernels.Stats, tokens_k: Tokens, params: Parameters, site: SiteFunction
    ) -> jax.Array:
        assert stats.received is not None
        self._pay(stats.received, tokens_k, site)
        return mixed

    def told_weights(
        self,
        scores: jax.Array,
        allowed: Mapped,
        q: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        pattern = self.weights(scores, allowed)
        self._pay(jnp.sum(pattern, axis=-2), tokens_k, site)
        return pattern

    def _asked(self, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, position: Placed, heads: int) -> dict[str, Any]:
        return super()._asked(tokens_q, tokens_k, mask, position, heads) | {"stats": ("received",)}

    def _pay(self, received: Float[jax.Array, "B N S"], tokens_k: Tokens, site: SiteFunction) -> None:
        site("penalty", self.price * jnp.mean(unevenness(received, jnp.asarray(tokens_k.valid)), axis=-1))


def unevenness(received: Float[jax.Array, "B N S"], valid: jax.Array) -> Float[jax.Array, "B N"]:
    """The variance of attention received over its squared mean, over keys that are `valid`, [S] or [B, S]."""
    inside = valid[..., None, :]
    count = jnp.maximum(jnp.sum(inside, axis=-1), 1)
    mean = jnp.sum(received * inside, axis=-1) / count
    variance = jnp.sum(jnp.square(received - mean[..., None]) * inside, axis=-1) / count
    return variance / jnp.where(mean > 0, jnp.square(mean), 1.0)
