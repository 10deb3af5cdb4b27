"""The driver for Hopper GPUs, by Pallas and Mosaic GPU; the interpreter of that runs it on any machine, for tests.

No chip has run it yet: that it compiles for one, and computes the right numbers in the interpreter, is all that is
known. So it is used where it is named, and by no ladder.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.hopper import CHUNK, KEYS, elsewhere, old_jax, wrong_sizes, wrong_type
from positionbias.kernels.linear_recurrence import chunk as one
from positionbias.kernels.linear_recurrence.decays import left, spans
from positionbias.kernels.linear_recurrence.problem import Problem

LEAST = -128.0  # the logarithm of a decay that 32 bits tell from 0 is more, and infinity less itself is no number


class _Arrays(NamedTuple):
    """By heads, and padded to whole chunks and products."""

    q: Float[jax.Array, "B N T H"]
    k: Float[jax.Array, "B N T H"]
    v: Float[jax.Array, "B N T K"]
    log_decay: Float[jax.Array, "B N T 1"] | None
    keeps: Float[jax.Array, "B 1 T 1"] | None


def unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why the kernels cannot do it on the chip."""
    return elsewhere(platform) or interpret_unsupported_reason(problem, platform)


def interpret_unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why they cannot do it even in the interpreter."""
    own = problem.by_channel and f"{problem.by_channel} is one of each channel, and these kernels take one of each head"
    return old_jax() or wrong_type(problem.q) or own or wrong_sizes(problem.chunk, problem.sizes[3])


def run(problem: Problem, interpret: bool = False) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N H K"]]:
    """The recurrence by the Mosaic GPU kernels."""
    # Only here, since what they import differs from release to release of jax, and not all have it.
    from positionbias.kernels.gpu import plgpu
    from positionbias.kernels.linear_recurrence.gpu_kernels import How, part_of

    problem = problem.mapped
    _, length, _, size, values = problem.sizes
    more, more_keys = -length % CHUNK, -size % KEYS
    width, parts = part_of(values, size + more_keys, problem.log_decay is not None or problem.resets is not None)
    more_values = parts * width - values

    def taken(x: jax.Array, wider: int = 0, fill: float = 0.0) -> jax.Array:
        x = jnp.moveaxis(x, 2, 1)
        x = jnp.flip(x, axis=2) if problem.reverse else x
        return jnp.pad(x, [(0, 0), (0, 0), (0, more), (0, wider)], constant_values=fill)

    q, k = (taken(x, more_keys) for x in (problem.q, problem.k))
    v = taken(problem.v.astype(q.dtype), more_values)
    log_decay = None if problem.log_decay is None else taken(problem.log_decay)
    keeps = None if problem.keeps is None else taken(problem.keeps, fill=1.0)
    state = jnp.pad(problem.initial_state, [(0, 0), (0, 0), (0, more_keys), (0, more_values)])
    how = How(problem.inclusive, problem.v.dtype, plgpu.InterpretGPUParams() if interpret else None)
    o, state = _run(how, _Arrays(q, k, v, log_decay, keeps), state)
    o = o[:, :, :length, :values]
    return jnp.moveaxis(jnp.flip(o, axis=2) if problem.reverse else o, 1, 2), state[:, :, :size, :values]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(how: Any, arrays: _Arrays, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _forward(how, arrays, state, keep=False)[:2]


def _forward(how: Any, arrays: _Arrays, state: jax.Array, keep: bool) -> Any:
    from positionbias.kernels.linear_recurrence.gpu_kernels import forward

    return forward(how, arrays.q, arrays.k, arrays.v, _told(how, arrays), state, keep)


def _run_forward(how: Any, arrays: _Arrays, state: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
    o, last, states = _forward(how, arrays, state, keep=True)
    return (o, last), (arrays, states)


def _run_backward(how: Any, kept: Any, slopes: tuple[jax.Array, jax.Array]) -> tuple[_Arrays, jax.Array]:
    from positionbias.kernels.linear_recurrence.gpu_kernels import backward

    (arrays, states), (do, dlast) = kept, slopes
    q, k, v, log_decay, keeps = arrays
    found = backward(how, q, k, v, _told(how, arrays), states, do.astype(q.dtype), dlast)
    dq, dk = (jnp.sum(x, axis=2) for x in (found.q, found.k))
    dlog = None
    if log_decay is not None:
        # What a step reads of its own key is in both products, and goes out between them.
        read, written = (_chunks(jnp.sum(x * dx, axis=-1, keepdims=True)) for x, dx in ((q, dq), (k, dk)))
        assert found.begin is not None
        begin = jnp.sum(found.begin, axis=(2, 4))[..., None, None]
        parted = None if keeps is None else _chunks(keeps)
        dlog = one.of_decay(begin, read, written, how.inclusive, parted).reshape(log_decay.shape)
        dlog = dlog.astype(log_decay.dtype)
    dkeeps = None if keeps is None else jnp.zeros_like(keeps)
    return _Arrays(dq.astype(q.dtype), dk.astype(k.dtype), found.v, dlog, dkeeps), found.state


_run.defvjp(_run_forward, _run_backward)


def _told(how: Any, arrays: _Arrays) -> Any:
    """What decays and resets say of each step and chunk."""
    from positionbias.kernels.linear_recurrence.gpu_kernels import Told

    if arrays.log_decay is None and arrays.keeps is None:
        return Told()
    batch, heads, length, _ = arrays.q.shape
    log_decay = None if arrays.log_decay is None else _chunks(arrays.log_decay.astype(jnp.float32))
    keeps = None if arrays.keeps is None else _chunks(arrays.keeps)
    found = spans(log_decay, CHUNK, how.inclusive, keeps)

    def each(x: jax.Array | None) -> jax.Array | None:
        """[B, N, T]"""
        if x is None:
            return None
        return jnp.broadcast_to(x, (batch, heads, *x.shape[2:])).reshape(batch, heads, length)

    sums = reads = None
    if log_decay is not None:
        bounded = jnp.maximum(log_decay, LEAST)
        sums = _running(bounded, keeps)
        reads = sums if how.inclusive else sums - bounded
    runs = None if keeps is None else jnp.cumsum(1 - keeps, axis=-2)
    assert found.total is not None
    keep, lost = (jnp.broadcast_to(x[..., 0, 0], (batch, heads, x.shape[2])) for x in left(found.total))
    return Told(each(found.since), each(found.until), each(sums), each(reads), each(runs), keep, lost)


def _running(x: jax.Array, keeps: jax.Array | None) -> jax.Array:
    """Sums of the steps of a chunk until each; what is before the state was last cleared is not in them."""
    if keeps is None:
        return jnp.cumsum(x, axis=-2)
    keeps = jnp.broadcast_to(keeps, x.shape)

    def joined(before: tuple[jax.Array, ...], after: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return before[0] * after[1] + after[0], before[1] * after[1]

    return jax.lax.associative_scan(joined, (x, keeps), axis=x.ndim - 2)[0]


def _chunks(x: jax.Array) -> jax.Array:
    """[B, N, T, X] as [B, N, T / C, C, X]."""
    return x.reshape(*x.shape[:2], -1, CHUNK, x.shape[3])
