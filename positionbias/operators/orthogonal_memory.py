"""Orthogonal memory: the past as a mean of coefficients in an orthonormal basis, beside exact local attention."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float
from positionbias.masks.base import Mask
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import Recurrent, by_head, only_valid, sees_all, there
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "orthogonal_memory")
@dataclasses.dataclass(frozen=True)
class OrthogonalMemory(Recurrent):
    """Attention to `slots` vectors that hold the mean of what came, and to the last `window` tokens (LAVO).

    Zhang et al. 2023 (arXiv 2312.11135), of which we could read the outline: with b_j the orthonormal basis of a head
    (trained, made orthonormal by a QR decomposition) and x_i = W x a token in it, slot j at step t is
    h_j = b_j (1 / t) sum over i <= t of b_j . x_i; keys and values are the slots themselves, and in the window the x_i,
    with a trained number a head and distance added to the score. `join`: one softmax over slots and window (`joint`),
    or the sum of one each (`sum`); the source does not say which. A mean of projections is the projection of the mean,
    so that of what lies behind the window `slots` numbers a head are left.
    """

    slots: int = 16
    window: int = 16
    join: Literal["joint", "sum"] = "joint"

    reads = "stream"
    patterns = frozenset({"causal_self", "noncausal_self"})
    uses_rotation = False

    def __post_init__(self) -> None:
        require(1 <= self.slots <= 65536, "slots", self.slots, "a whole number from 1 to 65536")
        require(1 <= self.window <= 65536, "window", self.window, "a whole number from 1 to 65536")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        size = dims.heads * dims.head_size
        require(self.slots <= dims.head_size, "slots", self.slots, f"at most the head size, {dims.head_size}")
        return {
            "query": Matrix((dims.width, size), "query", dims.width),
            "token": Matrix((dims.width, size), "key", dims.width),
            "output": Matrix((size, dims.width), "output", size),
            "basis": Matrix((dims.heads, dims.head_size, self.slots), "memory", dims.head_size, "fan_in"),
            "by_distance": Matrix((dims.heads, self.window), "position", self.window, "constant(value=0.0)"),
        }

    def mix(self, x: jax.Array, tokens: Tokens, mask: Mask, params: Parameters, site: SiteFunction) -> jax.Array:
        heads, valid = len(params["basis"]), there(tokens, len(x))[..., None]
        q, token = (by_head(x @ params[name].astype(x.dtype), heads) for name in ("query", "token"))
        q, token = q.astype(jnp.float32) * q.shape[-1] ** -0.5, only_valid(token.astype(jnp.float32), tokens)
        basis = jnp.linalg.qr(params["basis"].astype(jnp.float32))[0]  # [N, H, R]
        held = jnp.einsum("BTNH,NHR->BTNR", token, basis)
        if sees_all(mask):
            mean = jnp.sum(held, axis=1, keepdims=True) / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None]
            mean = jnp.broadcast_to(mean, held.shape)
        else:
            mean = jnp.cumsum(held, axis=1) / jnp.maximum(jnp.cumsum(valid, axis=1), 1)[..., None]
        far = jnp.einsum("BTNH,NHR->BTNR", q, basis) * mean
        near, nearby, seen = self._window(q, token, tokens, params["by_distance"])
        if self.join == "joint":
            everything = jnp.concatenate([far, near], axis=-1)
            weights = masked_softmax(everything, jnp.concatenate([jnp.ones_like(far, bool), seen], axis=-1))
            by_far, by_near = weights[..., : self.slots], weights[..., self.slots :]
        else:
            by_far, by_near = jax.nn.softmax(far, axis=-1), masked_softmax(near, seen)
        mixed = jnp.einsum("BTNR,NHR->BTNH", by_far * mean, basis) + jnp.einsum("BTNW,BTWNH->BTNH", by_near, nearby)
        mixed = only_valid(mixed.reshape(*x.shape[:2], -1).astype(x.dtype), tokens)
        return mixed @ params["output"].astype(x.dtype)

    def _window(
        self, q: jax.Array, token: jax.Array, tokens: Tokens, by_distance: Float[jax.Array, "N W"]
    ) -> tuple[Float[jax.Array, "B T N W"], Float[jax.Array, "B T W N H"], Bool[jax.Array, "B T N W"]]:
        """Scores of the tokens 0 to `window` - 1 places back, those tokens, and which of them are there."""
        valid = there(tokens, len(token))
        lags = range(min(self.window, token.shape[1]))

        def back(x: jax.Array, lag: int) -> jax.Array:
            return jnp.pad(x[:, : x.shape[1] - lag], [(0, 0), (lag, 0)] + [(0, 0)] * (x.ndim - 2))

        nearby = jnp.stack([back(token, lag) for lag in lags], axis=2)
        seen = jnp.stack([back(valid, lag) for lag in lags], axis=2)
        scores = jnp.einsum("BTNH,BTWNH->BTNW", q, nearby) + by_distance.astype(jnp.float32)[:, : len(lags)]
        return scores, nearby, jnp.broadcast_to(seen[:, :, None], scores.shape)

    def state_size(self, dims: Dims) -> int:
        return dims.heads * (self.slots + min(self.window, dims.length) * dims.head_size) + 1
