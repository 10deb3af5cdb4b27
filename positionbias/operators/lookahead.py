"""Attention that learns how far ahead every token looks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Int, Mapped
from positionbias.operators.base import ScoreOperator, SiteFunction, reasons
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "lookahead")
@dataclasses.dataclass(frozen=True)
class Lookahead(ScoreOperator):
    """Softmax that sees what comes before, and of what comes after as much as each query asks for, at a price.

    After the adaptive non-causal attention transducer (ANCAT, arXiv 2305.04159), whose formulas we could not read:
    these are ours. A query q_i, all heads together, looks ahead w_i = `most` * sigmoid(u . q_i / sqrt(N H) + b) places;
    a key d = j - i > 0 places ahead has log sigmoid((w_i - d) / `softness`) added to its score, and none beyond `most`
    is seen. The loss grows by `price` times the mean of w_i in every layer. How far is a number to be learned, so that
    no boolean mask says it; what `model.mask` hides stays hidden, so that it should let through what comes after. The
    intervention `hard_lookahead` rounds w_i, so that a key is seen whole or not at all.
    """

    most: int
    softness: float = 0.5
    price: float = 0.0
    scaled: bool = True

    patterns = frozenset({"noncausal_self", "causal_self"})
    priced = True
    lacks = reasons(cross="it looks ahead of a query's own place, and another sequence has none for it")

    def __post_init__(self) -> None:
        require(self.most >= 1, "most", self.most, "a whole number from 1")
        require(1e-6 <= self.softness <= 1e6, "softness", self.softness, "a number from 1e-6 to 1e6")
        require(0 <= self.price <= 1e6, "price", self.price, "a number from 0 to 1e6")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        size = dims.heads * dims.head_size
        return {
            "direction": Matrix((size,), "lookahead", size, "normal(std=1.0)"),
            "offset": Matrix((1,), "lookahead", 1, "constant(value=0.0)"),
        }

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
        flat = q.reshape(*q.shape[:2], -1).astype(jnp.float32)
        asked = flat @ params["direction"] * flat.shape[-1] ** -0.5 + params["offset"]
        ahead = site("lookahead", self.most * jax.nn.sigmoid(asked))  # [B, T]
        valid = jnp.asarray(tokens_q.valid)
        site("penalty", self.price * jnp.sum(ahead * valid, axis=-1) / jnp.maximum(jnp.sum(valid, axis=-1), 1))
        away = jnp.asarray(tokens_k.columns().index - tokens_q.rows().index)  # [..., T, S]
        near, gate = self.gated(ahead[:, :, None], away)
        return masked_softmax(scores + gate[:, None], allowed & (near[:, None] if near.ndim == 3 else near))

    def gated(
        self, ahead: Float[jax.Array, "B T 1"], away: Int[jax.Array, "... T S"]
    ) -> tuple[Bool[jax.Array, "... T S"], Float[jax.Array, "B T S"]]:
        """Which keys are seen so many places `away`, and what is added to their scores."""
        soft = jax.nn.log_sigmoid((ahead - away) / self.softness)
        return away <= self.most, jnp.where(away > 0, soft, 0.0)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        return allowed & (tokens_k.columns().index - tokens_q.rows().index <= self.most)
