"""The mathematics of one tile of queries and keys, written once for all drivers.

Everything here is plain arrays: scores s of a tile, which of its pairs are allowed, and what rows or keys carry, in
shapes that broadcast against the tile, either way round. With a = exp(s - lse) the weights, a loss whose cotangents are
dO (outputs), dlse, dH (entropy), dM (mean position), g (attention received) and b (mass of the tile) has

    dS_ij = a_ij (X_ij - D_i),    X_ij = keep_ij dO_i . v_j + g_j + b + dM_i j - dH_i s_ij,
    D_i = dO_i . o_i - dlse_i + dM_i M_i - dH_i (lse_i - H_i) + sum_j a_ij (g_j + b).

The last sum is the only one that a backward pass must gather; without normalisation D is 0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Mapped

NONE = -1e3  # its exponential is 0 in every type
FLOOR = -0.7 * float(np.finfo(np.float32).max)  # the score of a pair not allowed: finite, and its differences too


def weights(
    s: Float[Mapped, "..."], allowed: Bool[Mapped, "..."] | None, lse: Float[Mapped, "..."] | None
) -> Float[jax.Array, "..."]:
    """exp(s - lse) where allowed, else 0; exp(s) without an lse. No infinity on the way."""
    shifted = s if lse is None else s - lse
    if allowed is None:
        return jnp.exp(shifted)
    return jnp.exp(jnp.where(allowed, shifted, NONE))


def finite(s: Float[Mapped, "..."], allowed: Bool[Mapped, "..."] | None) -> Float[jax.Array, "..."]:
    """Scores that a weight may be multiplied by: 0 where not allowed, and finite where a rule gave -infinity."""
    s = jnp.maximum(s, -1e30)
    return s if allowed is None else jnp.where(allowed, s, 0.0)


def slopes(
    dp: Float[Mapped, "..."],
    s: Float[Mapped, "..."],
    keep: Float[Mapped, "..."] | None,
    given: Float[Mapped, "..."] | None,
    by_index: Float[Mapped, "..."] | None,
    by_entropy: Float[Mapped, "..."] | None,
) -> Float[jax.Array, "..."]:
    """X of this page from dp = dO v'; `given` is g + b, `by_index` dM times the key's index, `by_entropy` dH."""
    x = dp if keep is None else dp * keep
    for more in (given, by_index):
        x = x if more is None else x + more
    return x if by_entropy is None else x - by_entropy * s


def kept(
    seed: Any, rate: float, batch: Any, head: Any, query: Int[Mapped, "..."], key: Int[Mapped, "..."]
) -> Float[jax.Array, "..."]:
    """What dropout multiplies a weight by: 0 with probability `rate`, else 1 / (1 - rate).

    A hash of the seed and the place of the weight, so that it is the same forwards and backwards, in every driver, on
    every platform and for every size of tiles. Indices are int32 and broadcast.
    """
    word = jnp.asarray(seed).astype(jnp.uint32)
    for place, step in ((batch, 0x9E3779B1), (head, 0x85EBCA77), (query, 0xC2B2AE3D), (key, 0x27D4EB2F)):
        word = _mixed(word ^ (jnp.asarray(place).astype(jnp.uint32) * np.uint32(step)))
    # The upper 31 bits as a signed number, which every chip compares.
    drawn = (word >> np.uint32(1)).astype(jnp.int32)
    return jnp.where(drawn < round(rate * 2**31), 0.0, 1.0 / (1.0 - rate)).astype(jnp.float32)


def _mixed(word: Any) -> Any:
    """The finalizer of MurmurHash3: every bit of the input shapes every bit of the output."""
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return word ^ (word >> np.uint32(16))
