"""The recurrence as its formula, step by step in float64: what every driver is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float
from positionbias.kernels.linear_recurrence.problem import LEAST


def recurrence_reference(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T N H"],
    v: Float[jax.Array, "B T N K"],
    log_decay: Float[jax.Array, "B T N"] | Float[jax.Array, "B T N H"] | None = None,
    value_log_decay: Float[jax.Array, "B T N K"] | None = None,
    initial_state: Float[jax.Array, "B N H K"] | None = None,
    inclusive: bool = True,
    reverse: bool = False,
    normalise: bool = False,
    resets: Bool[jax.Array, "B T"] | None = None,
) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N H K"]]:
    """Outputs, and the state after the last step; with `normalise` the sum of keys is its last column."""
    q, k, v = (jnp.asarray(x, jnp.float64) for x in (q, k, v))
    a = jnp.ones_like(k) if log_decay is None else jnp.exp(jnp.asarray(log_decay, jnp.float64))
    a = jnp.broadcast_to(a[..., None] if a.ndim == 3 else a, k.shape)
    b = jnp.ones_like(v) if value_log_decay is None else jnp.exp(jnp.asarray(value_log_decay, jnp.float64))
    if normalise:
        v, b = (jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1) for x in (v, b))
    batch, length, heads, features = q.shape
    fresh = jnp.zeros((batch, length), bool) if resets is None else jnp.asarray(resets)
    first = jnp.zeros((batch, heads, features, v.shape[-1]), jnp.float64)
    if initial_state is not None:
        first = jnp.asarray(initial_state, jnp.float64)

    def step(before: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, a, b, fresh = now
        before = jnp.where(fresh[:, None, None, None], 0.0, before)
        after = a[..., :, None] * before * b[..., None, :] + k[..., :, None] * v[..., None, :]
        return after, jnp.einsum("BNH,BNHK->BNK", q, after if inclusive else before)

    steps = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, a, b, fresh))
    state, o = jax.lax.scan(step, first, steps, reverse=reverse)
    o = jnp.moveaxis(o, 0, 1)
    if normalise:
        total = o[..., -1:]
        nothing = jnp.abs(total) < LEAST
        o = jnp.where(nothing, 0.0, o[..., :-1] / jnp.where(nothing, 1.0, total))
    return o, state
