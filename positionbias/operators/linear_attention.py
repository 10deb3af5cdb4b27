"""Linear attention: the scores of softmax attention replaced by products of features."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Bool, Float, Tree
from positionbias.masks.base import Mask
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import (
    Recurrent,
    across,
    in_chunks,
    of_one_sequence,
    only_valid,
    rejoined,
    rotated,
    sees_all,
    there,
)
from positionbias.positions.base import Parameters, Placed
from positionbias.spec import member
from positionbias.tokens import Tokens

Feature = Literal["elu", "relu", "taylor", "exp", "identity"]
ROWS = 512  # tokens of which features are made at once, where no kernel makes them


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

    known_as = ("linear",)

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
        q, k = rotated(position, q, k, tokens_q, tokens_k)
        mixed = of_another(q, k, v, tokens_q, tokens_k, mask, self.feature, self._divides)
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
        tokens = asked.tokens_q
        mixed, state = of_its_own(
            *rotated(position, q, k, tokens, tokens), v, asked, self.feature, self._divides, state
        )
        return only_valid(mixed.astype(v.dtype), tokens), state

    @property
    def _divides(self) -> bool:
        return self.normalise and self.feature != "identity"


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
    # Products of entries as far apart, piece by piece: the gradient of single ones chosen would scatter them.
    squares = [x * x * np.float32(math.sqrt(0.5)), *(x[..., n:] * x[..., :-n] for n in range(1, size))]
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x, *squares], axis=-1)


def of_its_own(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T N H"],
    v: Float[jax.Array, "B T N K"],
    asked: Asked,
    feature: Feature,
    normalise: bool,
    state: Float[jax.Array, "B N F K"] | None,
) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N F K"]]:
    """Every query against the keys of its sequence up to its own, or all, and the state carried on."""
    if sees_all(asked.mask):
        return unordered(q, k, v, there(asked.tokens_q, len(k)), feature, normalise)
    q, k, made = _for_kernel(q, k, feature)
    return kernels.linear_attention(
        q,
        k,
        v.astype(jnp.float32),
        initial_state=state,
        resets=asked.resets(),
        normalise=normalise,
        valid=there(asked.tokens_q, len(k)),
        feature=made,
    )


def _for_kernel(
    q: jax.Array, k: jax.Array, feature: Feature
) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array] | None]:
    """Queries, keys, and what the kernel is to make of them: what is many more numbers than it is made of."""
    if feature == "taylor":
        return q.astype(jnp.float32), k.astype(jnp.float32), functools.partial(features, feature=feature)
    return features(q, feature), features(k, feature), None


def of_another(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S N H"],
    v: Float[jax.Array, "B S N K"],
    tokens_q: Tokens,
    tokens_k: Tokens,
    mask: Mask,
    feature: Feature,
    normalise: bool,
    state: Float[jax.Array, "B N F K"] | None = None,
) -> Float[jax.Array, "B T N K"]:
    """Every query against the keys of another sequence: all, or those stored up to it."""
    if sees_all(mask):
        return unordered(q, k, v, there(tokens_k, len(k)), feature, normalise)[0]
    q, k, made = _for_kernel(q, k, feature)
    return across(q, k, v.astype(jnp.float32), tokens_q, tokens_k, state=state, normalise=normalise, feature=made)


def unordered(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S N H"],
    v: Float[jax.Array, "B S N K"],
    valid: Bool[jax.Array, "B S"],
    feature: Feature,
    normalise: bool,
) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N F K"]]:
    """Every query against every key: one sum for all, which is returned too, [B, N, F, K + 1] with `normalise`."""
    state = summed(k, v, valid, feature, normalise)

    def read(q: jax.Array) -> jax.Array:
        return jnp.einsum("BTNF,BNFK->BTNK", features(q, feature), state)

    if q.shape[1] > ROWS:
        found = rejoined(jax.lax.map(jax.checkpoint(read), in_chunks(q, ROWS)), q.shape[1])
    else:
        found = read(q)
    return kernels.divided(found) if normalise else found, state


def summed(
    k: Float[jax.Array, "B S N H"],
    v: Float[jax.Array, "B S N K"],
    valid: Bool[jax.Array, "B S"],
    feature: Feature,
    normalise: bool,
) -> Float[jax.Array, "B N F K"]:
    """The sum of f(k) v' over tokens that are `valid`; with `normalise` of f(k) too, in the last column."""
    v = v.astype(jnp.float32)
    if normalise:
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    v = v * valid[..., None, None]

    def written(k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.einsum("BSNF,BSNK->BNFK", features(k, feature), v)

    if k.shape[1] <= ROWS:
        return written(k, v)

    def step(state: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return state + jax.checkpoint(written)(*part), None

    begin = jnp.zeros_like(jax.eval_shape(written, k, v))
    return jax.lax.scan(step, begin, (in_chunks(k, ROWS), in_chunks(v, ROWS)))[0]
