"""The recurrence by XLA, all pairs of steps at once: no decay or one a head; gradients of every order are jax's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.linear_recurrence import chunk as one
from positionbias.kernels.linear_recurrence.problem import Problem


def unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why there are no T x T weights."""
    if problem.by_channel:
        return f"{problem.by_channel} is one of each channel, and no number for a pair of steps tells what is left"
    return None


def quadratic(problem: Problem) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N H K"]]:
    """One chunk of all steps."""
    problem = problem.mapped
    dtype = problem.sum_dtype

    def taken(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 1, 2)
        return jnp.flip(x, axis=2) if problem.reverse else x

    q, k, v = (taken(x).astype(dtype) for x in (problem.q, problem.k, problem.v))
    log_decay = None if problem.log_decay is None else taken(problem.log_decay).astype(dtype)
    keeps = None if problem.keeps is None else taken(problem.keeps)
    o, state = one.at_once(one.Chunk(q, k, v, log_decay, None, keeps), problem.initial_state, problem.inclusive)
    o = jnp.flip(o, axis=2) if problem.reverse else o
    return jnp.moveaxis(o, 2, 1).astype(problem.v.dtype), state
