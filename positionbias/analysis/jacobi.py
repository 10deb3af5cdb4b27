"""Singular values by one-sided Jacobi rotations, which need sums of products alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int

SWEEPS = 12  # over all pairs of rows: errors fall quadratically, and about eight leave none at 128


def _rounds(rows: int) -> Int[np.ndarray, "M 2 P"]:
    """All pairs of an even number of rows, in rounds of pairs that share none: a round-robin tournament."""
    ring, found = list(range(1, rows)), []
    for _ in range(rows - 1):
        order = [0, *ring]
        found.append([order[: rows // 2], order[: rows // 2 - 1 : -1]])
        ring = ring[-1:] + ring[:-1]
    return np.asarray(found, np.int32)


def orthogonal_rows(x: Float[jax.Array, "R N"], of: int) -> Float[jax.Array, "R N"]:
    """The rows turned among each other until their first `of` columns are orthogonal (Hestenes 1958)."""
    count = len(x)
    padded = jnp.pad(x, ((0, count % 2), (0, 0)))

    def turn(x: jax.Array, pairs: jax.Array) -> tuple[jax.Array, None]:
        a, b = x[pairs[0]], x[pairs[1]]
        aa, bb, ab = (jnp.sum(u[:, :of] * v[:, :of], axis=1) for u, v in ((a, a), (b, b), (a, b)))
        apart = ab != 0
        slope = (bb - aa) / jnp.where(apart, 2 * ab, 1.0)
        # The smaller of both angles, without which sweeps need not end. A slope too large to square turns nothing.
        tangent = jnp.sign(slope) / (jnp.abs(slope) + jnp.sqrt(1 + jnp.square(slope)))
        tangent = jnp.where(apart, jnp.where(slope == 0, 1.0, tangent), 0.0)[:, None]
        cosine = 1 / jnp.sqrt(1 + jnp.square(tangent))
        x = x.at[pairs[0]].set(cosine * (a - tangent * b))
        return x.at[pairs[1]].set(cosine * (b + tangent * a)), None

    if len(padded) < 2:
        return x
    rounds = jnp.tile(jnp.asarray(_rounds(len(padded))), (SWEEPS, 1, 1))
    return jax.lax.scan(turn, padded, rounds)[0][:count]


def singular_values(left: Float[jax.Array, "D R"], right: Float[jax.Array, "R E"]) -> Float[jax.Array, "R"]:
    """The singular values of the product, the largest first; its rank is R at most.

    With J that makes the rows of J left' orthogonal, left right = (J left')' (J right), whose first factor has
    orthogonal columns: so the values are those of J right with each row times the size of its column.
    """
    sizes = [jnp.max(jnp.abs(x)) for x in (left, right)]
    sizes = [jnp.where(size > 0, size, 1.0) for size in sizes]
    both = jnp.concatenate([left.T / sizes[0], right / sizes[1]], axis=1)
    turned = orthogonal_rows(both, len(left))
    scaled = jnp.linalg.norm(turned[:, : len(left)], axis=1, keepdims=True) * turned[:, len(left) :]
    found = jnp.linalg.norm(orthogonal_rows(scaled, scaled.shape[1]), axis=1)
    return -jnp.sort(-found) * sizes[0] * sizes[1]
