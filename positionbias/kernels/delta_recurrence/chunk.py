"""The algebra of one chunk of one head, shared by all drivers: matrices of two axes, C rows, in float32 or float64.

Every product of decays comes from the inverse of a unit lower triangular matrix, as the correction does: no number is
divided by a decay, none is a difference of logarithms, and a decay may be 0. A number just below 1 is rounded by up to
2^-25, which adds up where thousands are the same. So what is more than a half is 1 less the part lost, and that is a
sum of positive numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.linear_recurrence.decays import less_one

ROWS = (((1,), (1,)), ((), ()))  # x y'
COLUMNS = (((0,), (0,)), ((), ()))  # x' y
PLAIN = (((1,), (0,)), ((), ()))  # x y
HALF = 0.5
Gates = Float[jax.Array, "C gates"]  # a column for each number a step


def delta(
    q: Float[jax.Array, "C H"], k: Float[jax.Array, "C H"], v: Float[jax.Array, "C K"], gates: Gates, state: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Outputs and the state behind a chunk of `delta_rule`; the gates are strength and, if told, log_decay.

    What step i writes, k_i w_i^T, depends on what the steps before it wrote: (I + A) w = strength (v - e^G k S) with
    A_ij = strength_i e^{G_i - G_j} k_i . k_j below the diagonal, G the running sum of log_decay (Yang et al. 2024,
    "Gated Delta Networks", the WY form of section 3).
    """
    strength = gates[:, :1]
    log_decay = gates[:, 1:] if gates.shape[1] > 1 else jnp.zeros_like(strength)
    decay, from_start, lost = _decays(jnp.exp(log_decay), -less_one(log_decay))
    error = strength * (v - from_start * dot(k, state, PLAIN))
    row, column = _places(strength)
    written = solve(jnp.where(row > column, strength * decay * dot(k, k, ROWS), 0.0), error)
    o = from_start * dot(q, state, PLAIN) + dot(decay * dot(q, k, ROWS), written, PLAIN)
    return o, (_kept(state, from_start, lost) + dot(_to_end(decay) * k, written, COLUMNS),)


class Parts(NamedTuple):
    """A chunk of `delta` by what is to be done with a state S: what is written is w = ahead - corrects S.

    Outputs are reads S + near w, and the state behind the chunk is S keep + S lost + until' w.
    """

    reads: Float[jax.Array, "C H"]
    near: Float[jax.Array, "C C"]
    until: Float[jax.Array, "C H"]
    ahead: Float[jax.Array, "C K"]
    corrects: Float[jax.Array, "C H"]
    keep: Float[jax.Array, ""]
    lost: Float[jax.Array, ""]


def parts(q: Float[jax.Array, "C H"], k: Float[jax.Array, "C H"], v: Float[jax.Array, "C K"], gates: Gates) -> Parts:
    """All of `delta` that needs no state."""
    strength = gates[:, :1]
    log_decay = gates[:, 1:] if gates.shape[1] > 1 else jnp.zeros_like(strength)
    decay, from_start, lost = _decays(jnp.exp(log_decay), -less_one(log_decay))
    row, column = _places(strength)
    both = strength * jnp.concatenate([v, from_start * k], axis=1)
    both = solve(jnp.where(row > column, strength * decay * dot(k, k, ROWS), 0.0), both)
    ahead, corrects = both[:, : v.shape[1]], both[:, v.shape[1] :]
    near = lost[-1, 0] < HALF
    factors = jnp.where(near, 1.0, from_start[-1, 0]), jnp.where(near, -lost[-1, 0], 0.0)
    return Parts(from_start * q, decay * dot(q, k, ROWS), _to_end(decay) * k, ahead, corrects, *factors)


def memory(
    q: Float[jax.Array, "C H"],
    k: Float[jax.Array, "C H"],
    v: Float[jax.Array, "C K"],
    gates: Gates,
    start: jax.Array,
    speed: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Outputs, memory and momentum behind a chunk of `linear_memory`; the gates are rate, momentum, forget and valid.

    With u_i = 2 rate_i (v_i - k_i M) for the memory M of the chunk's start, k_i u_i^T is in the momentum of step t with
    weight E_ti = prod momentum_{i+1..t}, and in its memory with (F E)_ti, F_ti = prod (1 - forget)_{i+1..t}. A step
    that is not valid hands both on, and its momentum is not added to the memory.
    """
    valid = gates[:, 3:]
    rate, slowed, forget = gates[:, :1] * valid, valid * (1 - gates[:, 1:2]), valid * gates[:, 2:3]
    in_speed, since_speed, lost_speed = _decays(1 - slowed, slowed)
    left, of_start, lost = _decays(1 - forget, forget)
    in_memory, of_speed = dot(left, valid * in_speed, PLAIN), dot(left, valid * since_speed, PLAIN)
    u = 2 * rate * (v - dot(k, start, PLAIN))
    o = of_start * dot(q, start, PLAIN) + of_speed * dot(q, speed, PLAIN)
    o += dot(in_memory * dot(q, k, ROWS), u, PLAIN)
    end = _kept(start, of_start, lost) + of_speed[-1:] * speed + dot(_to_end(in_memory) * k, u, COLUMNS)
    return o, (end, _kept(speed, since_speed, lost_speed) + dot(_to_end(in_speed) * k, u, COLUMNS))


def _decays(
    left: Float[jax.Array, "C 1"], lost: Float[jax.Array, "C 1"]
) -> tuple[Float[jax.Array, "C C"], Float[jax.Array, "C 1"], Float[jax.Array, "C 1"]]:
    """Of decays and 1 less each: products after the column's step, products from the first on, and 1 less those.

    What is lost is a sum over steps of what each of them loses, of which later ones leave the product.
    """
    row, column = _places(left)
    after = solve(-jnp.where(row == column + 1, left, 0.0), _eye(left))
    lost_after, lost_all = dot(after, jnp.where(row > column, lost, 0.0), PLAIN), dot(after, lost, PLAIN)
    products = jnp.where(row < column, 0.0, _less(lost_after, after))
    return products, _less(lost_all, after[:, :1] * left[:1]), lost_all


def _less(lost: jax.Array, product: jax.Array) -> jax.Array:
    """1 less what is lost, where the product is not more precise."""
    return jnp.where(lost < HALF, 1 - lost, product)


def _kept(state: jax.Array, from_start: jax.Array, lost: jax.Array) -> jax.Array:
    """What all steps leave of it."""
    return jnp.where(lost[-1:] < HALF, state - lost[-1:] * state, from_start[-1:] * state)


@jax.custom_vjp
def solve(a: Float[jax.Array, "C C"], b: Float[jax.Array, "C K"]) -> Float[jax.Array, "C K"]:
    """(I + a)^{-1} b for a that is zero on the diagonal and above."""
    return dot(_inverse(a), b, PLAIN)


def _forward(a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    inverse = _inverse(a)
    x = dot(inverse, b, PLAIN)
    return x, (inverse, x)


def _backward(kept: tuple[jax.Array, jax.Array], dx: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse, x = kept
    db = dot(inverse, dx, COLUMNS)
    return -dot(db, x, ROWS), db


solve.defvjp(_forward, _backward)


def _inverse(a: jax.Array) -> jax.Array:
    """(I + a)^{-1}, from the inverses of blocks on the diagonal, of twice the size each time.

    All that it multiplies are parts of the inverse and of a. Powers of a, whose product is the inverse too, are not: of
    64 equal keys they have entries of 1e17, which float32 does not sum to what is 1 or less.
    """
    size = a.shape[0]
    row, column = _places(a)
    x, half = _eye(a), 1
    while half < size:
        joins = (row // (2 * half) == column // (2 * half)) & (row // half > column // half)
        corner = jnp.where(joins, a, 0.0)
        x = x - (corner if half == 1 else dot(x, dot(corner, x, PLAIN), PLAIN))
        half *= 2
    return x


def _to_end(weights: jax.Array) -> jax.Array:
    """The last row, as a column."""
    last = jax.lax.broadcasted_iota(jnp.int32, (len(weights), 1), 0) == len(weights) - 1
    return dot(weights, last.astype(weights.dtype), COLUMNS)


def _eye(like: jax.Array) -> jax.Array:
    row, column = _places(like)
    return (row == column).astype(like.dtype)


def _places(like: jax.Array) -> tuple[jax.Array, jax.Array]:
    shape = (like.shape[0], like.shape[0])
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0), jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def dot(x: jax.Array, y: jax.Array, axes: Any) -> jax.Array:
    """A product of matrices, as precise as jax is configured for."""
    return jax.lax.dot_general(x, y, axes, preferred_element_type=x.dtype)
