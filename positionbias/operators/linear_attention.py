"""Linear attention: the scores of softmax attention replaced by products of features."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Float, Tree
from positionbias.masks.base import Mask
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import Recurrent, across, of_one_sequence, only_valid, rotated, sees_all
from positionbias.positions.base import Parameters, Placed
from positionbias.spec import member
from positionbias.tokens import Tokens

Feature = Literal["elu", "relu", "taylor", "exp", "identity"]


@member("operators", "linear_attention")
@dataclasses.dataclass(frozen=True)
class LinearAttention(Recurrent):
    """o_i = sum_j f(q_i) . f(k_j) v_j / sum_j f(q_i) . f(k_j), f a feature map (Katharopoulos et al. 2020).

    arXiv 2006.16236, equations 5 and 9; causal, or over all keys, of its own sequence or another. `feature`: `elu` is
    elu(x) + 1 (the paper's), `relu` is max(x, 0), `exp` is e^x, which float32 holds up to x = 88, `taylor` makes f(q)
    . f(k) = 1 + s + s^2 / 2 of s = q . k / sqrt(H) (Based, Arora et al. 2024, arXiv 2402.18668), and `identity` is x /
    H^(1/4), which is not normalised, since its sums may be 0. With `normalise=False` no other is either. Queries and
    keys are turned by the position scheme before f. A row whose features have no key's in common is 0.
    """

    feature: Feature = "elu"
    normalise: bool = True

    patterns = frozenset({"causal_self", "noncausal_self", "causal_cross", "noncausal_cross"})

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        if of_one_sequence(tokens_q, tokens_k):
            return super().__call__(q, k, v, tokens_q, tokens_k, mask, position, params, site)
        q, k = self._features(q, k, tokens_q, tokens_k, position)
        mixed = of_another(q, k, v, tokens_q, tokens_k, mask, self._divides)
        return only_valid(mixed.astype(v.dtype), tokens_q)

    def advance(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        asked: Asked,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
        state: Tree,
    ) -> tuple[jax.Array, Tree]:
        q, k = self._features(q, k, asked.tokens_q, asked.tokens_q, position)
        if sees_all(asked.mask):
            mixed, state = unordered(q, k, v, self._divides)
        else:
            mixed, state = kernels.linear_attention(
                q, k, v.astype(jnp.float32), initial_state=state, resets=asked.resets(), normalise=self._divides
            )
        return only_valid(mixed.astype(v.dtype), asked.tokens_q), state

    @property
    def _divides(self) -> bool:
        return self.normalise and self.feature != "identity"

    def _features(
        self, q: jax.Array, k: jax.Array, tokens_q: Tokens, tokens_k: Tokens, position: Placed
    ) -> tuple[jax.Array, jax.Array]:
        q, k = rotated(position, q, k, tokens_q, tokens_k)
        return features(q, self.feature), only_valid(features(k, self.feature), tokens_k)


def features(x: Float[jax.Array, "... H"], feature: Feature) -> Float[jax.Array, "... F"]:
    """f(x), in float32."""
    x = x.astype(jnp.float32)
    if feature == "elu":
        return jnp.where(x > 0, x + 1.0, jnp.exp(jnp.where(x > 0, 0.0, x)))  # jax.nn.elu(x) + 1 is 0 from -17 down
    if feature == "relu":
        return jax.nn.relu(x)
    if feature == "exp":
        return jnp.exp(x)
    size = x.shape[-1]
    x = x * size**-0.25
    if feature == "identity":
        return x
    row, column = np.triu_indices(size)
    squares = x[..., row] * x[..., column] * np.where(row == column, math.sqrt(0.5), 1.0).astype(np.float32)
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x, squares], axis=-1)


def of_another(
    q: Float[jax.Array, "B T N F"],
    k: Float[jax.Array, "B S N F"],
    v: Float[jax.Array, "B S N K"],
    tokens_q: Tokens,
    tokens_k: Tokens,
    mask: Mask,
    normalise: bool,
) -> Float[jax.Array, "B T N K"]:
    """Every query against the keys of another sequence: all, or those stored up to it."""
    if sees_all(mask):
        return unordered(q, k, v, normalise)[0]
    return across(q, k, v.astype(jnp.float32), tokens_q, tokens_k, normalise=normalise)


def unordered(
    q: Float[jax.Array, "B T N F"], k: Float[jax.Array, "B S N F"], v: Float[jax.Array, "B S N K"], normalise: bool
) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N F K"]]:
    """Every query against every key: one sum for all, which is returned too, [B, N, F, K + 1] with `normalise`."""
    v = v.astype(jnp.float32)
    if normalise:
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    state = jnp.einsum("BSNF,BSNK->BNFK", k, v)
    found = jnp.einsum("BTNF,BNFK->BTNK", q, state)
    return kernels.divided(found) if normalise else found, state
