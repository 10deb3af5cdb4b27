"""The algebra of one chunk of one head, shared by all drivers: matrices of two axes, C rows, in float32 or float64.

Every product of decays comes from the inverse of a unit lower triangular matrix, as the correction does: no number is
divided by a decay, none is a difference of logarithms, and a decay may be 0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Float

ROWS = (((1,), (1,)), ((), ()))  # x y'
COLUMNS = (((0,), (0,)), ((), ()))  # x' y
PLAIN = (((1,), (0,)), ((), ()))  # x y
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
    a = jnp.exp(gates[:, 1:]) if gates.shape[1] > 1 else jnp.ones_like(strength)
    decay = solve(-_below(a), _eye(a))
    from_start = decay[:, :1] * a[:1]
    error = strength * (v - from_start * dot(k, state, PLAIN))
    row, column = _places(a)
    written = solve(jnp.where(row > column, strength * decay * dot(k, k, ROWS), 0.0), error)
    o = from_start * dot(q, state, PLAIN) + dot(decay * dot(q, k, ROWS), written, PLAIN)
    return o, (from_start[-1:] * state + dot(_to_end(decay) * k, written, COLUMNS),)


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
    rate, kept, left = gates[:, :1] * valid, 1 + valid * (gates[:, 1:2] - 1), 1 - valid * gates[:, 2:3]
    in_speed = solve(-_below(kept), _eye(kept))
    forgotten = solve(-_below(left), jnp.concatenate([_eye(left), valid * in_speed], axis=1))
    in_memory = forgotten[:, len(kept) :]
    of_start, of_speed = forgotten[:, :1] * left[:1], in_memory[:, :1] * kept[:1]
    u = 2 * rate * (v - dot(k, start, PLAIN))
    o = of_start * dot(q, start, PLAIN) + of_speed * dot(q, speed, PLAIN)
    o += dot(in_memory * dot(q, k, ROWS), u, PLAIN)
    end = of_start[-1:] * start + of_speed[-1:] * speed + dot(_to_end(in_memory) * k, u, COLUMNS)
    last = in_speed[-1:, :1] * kept[:1]
    return o, (end, last * speed + dot(_to_end(in_speed) * k, u, COLUMNS))


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


def _below(a: jax.Array) -> jax.Array:
    """A column as the diagonal below the main one; its first entry is not there."""
    row, column = _places(a)
    return jnp.where(row == column + 1, a, 0.0)


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
