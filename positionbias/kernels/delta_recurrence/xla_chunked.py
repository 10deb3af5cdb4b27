"""The recurrence by XLA, a chunk of rows after another, with each chunk made again backwards.

It takes any type and any platform. What is kept for the gradient are the states that chunks begin with.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.delta_recurrence.problem import Problem

CHUNK = 16  # rows at a time, unless told


def chunked(problem: Problem) -> tuple[Float[jax.Array, "B T N K"], tuple[Float[jax.Array, "B N H K"], ...]]:
    """Outputs and the last states."""
    length = problem.sizes[1]
    size = min(CHUNK if problem.chunk is None else problem.chunk, length)
    parts = tuple(_parts(x, size) for x in (problem.q, problem.k, problem.v, problem.gates))
    advance = jax.vmap(jax.vmap(problem.advance))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(states: Any, part: Any) -> tuple[Any, jax.Array]:
        o, states = advance(*(x.astype(problem.state_dtype) for x in part), *states)
        return states, o.astype(problem.v.dtype)

    states, o = jax.lax.scan(one, problem.states, parts)
    joined = jnp.moveaxis(o, (0, 3), (1, 2))  # [B, chunks, C, N, K]
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :length], states


def _parts(x: jax.Array, size: int) -> jax.Array:
    """[B, T, N, *] as [chunks, B, N, C, *], with rows of zeros behind the last."""
    count = -(-x.shape[1] // size)
    x = jnp.pad(x, [(0, 0), (0, count * size - x.shape[1]), (0, 0), (0, 0)])
    return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), (1, 2), (0, 3))
