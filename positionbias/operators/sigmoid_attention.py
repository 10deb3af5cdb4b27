"""Sigmoids of scores as weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Mapped
from positionbias.masks.base import Mask
from positionbias.operators.by_kernel import ByKernel
from positionbias.operators.relu_attention import Count, counted
from positionbias.positions.base import Placed
from positionbias.spec import member
from positionbias.tokens import Tokens


@member("operators", "sigmoid_attention")
@dataclasses.dataclass(frozen=True)
class SigmoidAttention(ByKernel):
    """Each value is weighted by sigmoid(score - log n), n the number of keys; nothing is normalised over them.

    Ramapuram et al. 2024 (arXiv 2409.04431), whose bias -log n has the length of the sequence for n, so that weights
    sum to about one at the start. Ours is `count='visible'`: the keys that the query may see; 'length' is theirs, with
    padding counted. The kernel computes it without normalising, as exp(log sigmoid(score - log n)); `impl` as in
    `softmax`.
    """

    count: Count = "visible"
    scaled: bool = True
    impl: str | None = None

    def weights(self, scores: jax.Array, allowed: Mapped) -> jax.Array:
        return jnp.where(allowed, jax.nn.sigmoid(scores - jnp.log(counted(self.count, allowed))), 0.0)

    def _asked(self, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, position: Placed, heads: int) -> dict[str, Any]:
        asked = super()._asked(tokens_q, tokens_k, mask, position, heads)
        biased, aux = asked["score"], asked["aux"]
        keys = counted(self.count, mask.dense(tokens_q, tokens_k))[..., 0]
        keys = jnp.broadcast_to(keys, (*keys.shape[:-1], tokens_q.length))

        def score(
            s: jax.Array, b: jax.Array, h: jax.Array, q: jax.Array, k: jax.Array, *, keys: jax.Array, **told: jax.Array
        ) -> jax.Array:
            s = s if biased is None else biased(s, b, h, q, k, **told)
            return jax.nn.log_sigmoid(s - jnp.log(keys))

        return asked | {"score": score, "aux": {**aux, "keys": kernels.PerQuery(keys)}, "normalise": False}
