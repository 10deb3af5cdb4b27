"""The driver for Hopper GPUs, by Pallas and Mosaic GPU; the interpreter of that runs it on any machine, for tests.

What needs no state XLA computes of all chunks at once, and its gradient too (`chunk.parts`); the kernels do what goes
from chunk to chunk. No chip has run them yet: that they compile for one, and compute the right numbers in the
interpreter, is all that is known. So the driver is used where it is named, and by no ladder.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.delta_recurrence import chunk as algebra
from positionbias.kernels.delta_recurrence.problem import Problem
from positionbias.kernels.hopper import CHUNK, KEYS, elsewhere, old_jax, wrong_sizes, wrong_type


def unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why the kernels cannot do it on the chip."""
    return elsewhere(platform) or interpret_unsupported_reason(problem, platform)


def interpret_unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why they cannot do it even in the interpreter."""
    own = None if problem.advance is algebra.delta else "these kernels compute the delta rule alone"
    return old_jax() or own or wrong_type(problem.q) or wrong_sizes(problem.chunk, problem.sizes[3])


def run(
    problem: Problem, interpret: bool = False
) -> tuple[Float[jax.Array, "B T N K"], tuple[Float[jax.Array, "B N H K"], ...]]:
    """The recurrence by the Mosaic GPU kernels."""
    # Only here, since what they import differs from release to release of jax, and not all have it.
    from positionbias.kernels.delta_recurrence.gpu_kernels import Arrays, part_of
    from positionbias.kernels.gpu import plgpu

    batch, length, heads, size, values = problem.sizes
    more_keys = -size % KEYS
    width, parts = part_of(values, size + more_keys)
    more_values = parts * width - values

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.astype(problem.state_dtype), 2, 1)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % CHUNK), (0, 0)])
        return x.reshape(batch, heads, -1, CHUNK, x.shape[3])

    def rounded(x: jax.Array, more: int) -> jax.Array:
        x = jnp.pad(x.astype(problem.q.dtype), [(0, 0)] * 4 + [(0, more)])
        return x.reshape(batch, heads, -1, x.shape[4])

    given = (chunks(x) for x in (problem.q, problem.k, problem.v, problem.gates))
    found = jax.vmap(jax.vmap(jax.vmap(algebra.parts)))(*given)
    reads, until, corrects = (rounded(x, more_keys) for x in (found.reads, found.until, found.corrects))
    arrays = Arrays(reads, until, corrects, rounded(found.ahead, more_values), found.keep, found.lost)
    state = jnp.pad(problem.states[0], [(0, 0), (0, 0), (0, more_keys), (0, more_values)])
    read, written, last = _run(plgpu.InterpretGPUParams() if interpret else None, arrays, state)
    o = chunks(jnp.moveaxis(read, 1, 2)) + found.near @ chunks(jnp.moveaxis(written, 1, 2))
    o = o.reshape(batch, heads, -1, o.shape[4])[:, :, :length, :values]
    return jnp.moveaxis(o, 1, 2).astype(problem.v.dtype), (last[:, :, :size, :values],)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(interpret: Any, arrays: Any, state: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _forward(interpret, arrays, state, False)[:3]


def _forward(interpret: Any, arrays: Any, state: jax.Array, keep: bool) -> Any:
    from positionbias.kernels.delta_recurrence.gpu_kernels import forward

    return forward(interpret, arrays, state, keep)


def _run_forward(interpret: Any, arrays: Any, state: jax.Array) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    read, written, last, states = _forward(interpret, arrays, state, True)
    return (read, written, last), (arrays, written, states)


def _run_backward(interpret: Any, kept: Any, slopes: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
    from positionbias.kernels.delta_recurrence.gpu_kernels import backward

    (arrays, written, states), (dread, dwritten, dlast) = kept, slopes
    return backward(interpret, arrays, written, states, dread.astype(arrays.reads.dtype), dwritten, dlast)


_run.defvjp(_run_forward, _run_backward)
