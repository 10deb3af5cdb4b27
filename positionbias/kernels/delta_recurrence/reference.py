"""The recurrences as their formulas, a step at a time in float64: what every driver is held against."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def delta_rule_reference(
    q: Any, k: Any, v: Any, strength: Any, log_decay: Any = None, initial_state: Any = None, resets: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Outputs [B, T, N, K] and the last state [B, N, H, K]; arguments as those of `delta_rule`."""
    log_decay = jnp.zeros_like(strength) if log_decay is None else log_decay
    state = _zeros(k, v) if initial_state is None else jnp.asarray(initial_state, jnp.float64)

    def step(s: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        (q, k, v, strength, log_decay), fresh = now
        s = jnp.where(fresh[:, None, None, None], 0.0, s)
        s = jnp.exp(log_decay)[..., None, None] * s
        error = v - jnp.einsum("BNH,BNHK->BNK", k, s)
        s = s + jnp.einsum("BN,BNH,BNK->BNHK", strength, k, error)
        return s, jnp.einsum("BNH,BNHK->BNK", q, s)

    fresh = jnp.zeros(q.shape[:2], bool) if resets is None else jnp.broadcast_to(resets, q.shape[:2])
    steps = _steps(q, k, v, strength, log_decay), jnp.moveaxis(fresh, 1, 0)
    state, o = jax.lax.scan(step, state, steps)
    return jnp.moveaxis(o, 0, 1), state


def linear_memory_reference(
    q: Any,
    k: Any,
    v: Any,
    rate: Any,
    momentum: Any,
    forget: Any,
    chunk: int,
    valid: Any = None,
    initial_state: Any = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Outputs [B, T, N, K], memory and momentum [B, N, H, K]; arguments as those of `linear_memory`."""
    zero = _zeros(k, v)
    start, speed = (zero, zero) if initial_state is None else (jnp.asarray(x, jnp.float64) for x in initial_state)
    valid = jnp.ones(q.shape[:2], bool) if valid is None else jnp.asarray(valid)

    def loss(memory: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum((jnp.einsum("BNH,BNHK->BNK", k, memory) - v) ** 2, axis=-1)

    def step(carry: Any, now: Any) -> tuple[Any, jax.Array]:
        memory, speed, begun = carry
        (q, k, v, rate, momentum, forget), valid, place = now
        begun = jnp.where(place % chunk == 0, memory, begun)
        slope = jax.grad(lambda memory: jnp.sum(loss(memory, k, v)))(begun)
        rate, momentum, forget = (x[..., None, None] for x in (rate, momentum, forget))
        moved = momentum * speed - rate * slope
        seen = valid[:, None, None, None]
        memory = jnp.where(seen, (1 - forget) * memory + moved, memory)
        return (memory, jnp.where(seen, moved, speed), begun), jnp.einsum("BNH,BNHK->BNK", q, memory)

    told = _steps(q, k, v, rate, momentum, forget), jnp.moveaxis(valid, 1, 0), jnp.arange(q.shape[1])
    (memory, speed, _), o = jax.lax.scan(step, (start, speed, start), told)
    return jnp.moveaxis(o, 0, 1), (memory, speed)


def _steps(*arrays: Any) -> tuple[jax.Array, ...]:
    return tuple(jnp.moveaxis(jnp.asarray(x, jnp.float64), 1, 0) for x in arrays)


def _zeros(k: Any, v: Any) -> jax.Array:
    return jnp.zeros((k.shape[0], k.shape[2], k.shape[3], v.shape[3]), jnp.float64)
