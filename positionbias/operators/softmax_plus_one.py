"""Softmax with a slot that holds nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import SiteFunction
from positionbias.operators.by_kernel import ByKernel
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member
from positionbias.tokens import Tokens


@member("operators", "softmax_plus_one")
@dataclasses.dataclass(frozen=True)
class SoftmaxPlusOne(ByKernel):
    """Softmax over the visible keys and a null slot of value zero: exp(s_j) / (exp(b) + sum exp(s)).

    With b = 0 it is "softmax1" (Miller 2023, Attention Is Off By One): a query may attend to nothing. `learned` has a
    trained b a head that starts at 0, the sink logit of models that are trained with windows. The kernel computes it as
    softmax, whose outputs are multiplied by sigmoid(lse - b), lse the log of the sum of exponentials; `impl` as in
    `softmax`.
    """

    known_as = ("softmax1", "off_by_one")

    learned: bool = False
    scaled: bool = True
    impl: str | None = None

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {"sink": Matrix((dims.heads,), "sink", 1, "constant(value=0.0)")} if self.learned else {}

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
        null = jnp.broadcast_to(self._sink(params, scores.shape[1]), (*scores.shape[:-1], 1))
        allowed = jnp.broadcast_to(allowed, scores.shape)
        with_null = (
            jnp.concatenate([scores, null], axis=-1),
            jnp.pad(allowed, [(0, 0)] * 3 + [(0, 1)], constant_values=True),
        )
        return masked_softmax(*with_null)[..., :-1]

    def _told(
        self, mixed: jax.Array, stats: kernels.Stats, tokens_k: Tokens, params: Parameters, site: SiteFunction
    ) -> jax.Array:
        assert stats.lse is not None
        share = jax.nn.sigmoid(stats.lse[..., None] - self._sink(params, mixed.shape[2]))  # [B, N, T, 1]
        return mixed * jnp.moveaxis(share, 1, 2).astype(mixed.dtype)

    def _asked(self, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, position: Placed, heads: int) -> dict[str, Any]:
        return super()._asked(tokens_q, tokens_k, mask, position, heads) | {"stats": ("lse",)}

    def _sink(self, params: Parameters, heads: int) -> jax.Array:
        """The score of the null slot, [N, 1, 1]."""
        return (params["sink"] if self.learned else jnp.zeros(heads))[:, None, None].astype(jnp.float32)
