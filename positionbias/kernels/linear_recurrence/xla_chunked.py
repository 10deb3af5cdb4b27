"""The recurrence by XLA, a chunk of steps after another, forwards and backwards: any decays, any type, any platform.

Memory grows as T: chunks are read from the arrays and written to those of outputs, and of what is between nothing is
kept but the states before each chunk: features too are made of a chunk at a time, and made again for its gradient. The
gradient is written by hand (see `chunk`), so that there is no forward mode.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.linear_recurrence import chunk as one
from positionbias.kernels.linear_recurrence.problem import Feature, Problem, power_from

SHORTEST, LONGEST = 32, 128  # chunks; between them as many steps as a head has features
BASE = 32  # steps of a block whose pairs a matrix holds


class _How(NamedTuple):
    steps: int
    base: int
    inclusive: bool
    reverse: bool
    feature: Feature | None

    def features(
        self, q: Float[jax.Array, "... D"], k: Float[jax.Array, "... D"]
    ) -> tuple[Float[jax.Array, "... H"], Float[jax.Array, "... H"]]:
        """Of a chunk."""
        return (q, k) if self.feature is None else (self.feature(q), self.feature(k))


class _Arrays(NamedTuple):
    q: Float[jax.Array, "B T N D"]
    k: Float[jax.Array, "B T N D"]
    v: Float[jax.Array, "B T N K"]
    log_decay: Float[jax.Array, "B T N 1|H"] | None
    value_log_decay: Float[jax.Array, "B T N K"] | None


def chunked(problem: Problem) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N H K"]]:
    """`problem.chunk` steps at a time, by default so many that the states before chunks take no more than q or v."""
    _, length, _, *features = problem.sizes
    longest = problem.chunk or min(max(power_from(max(features)), SHORTEST), LONGEST)
    steps = min(longest, power_from(length))
    base = 1 if problem.by_channel else min(BASE, steps)
    arrays = _Arrays(problem.q, problem.k, problem.v, problem.log_decay, problem.value_log_decay)
    keeps = problem.keeps
    more = -length % steps  # steps that keep the state as it is: values are 0, whatever keys are, and the logarithms
    if more:
        behind = [(0, 0), (0, more), (0, 0), (0, 0)]
        arrays = jax.tree.map(lambda x: jnp.pad(x, behind), arrays)
        keeps = None if keeps is None else jnp.pad(keeps, behind, constant_values=1)
    how = _How(steps, base, problem.inclusive, problem.reverse, problem.feature)
    o, state = _run(how, arrays, keeps, problem.initial_state)
    return o[:, :length] if more else o, state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(how: _How, arrays: _Arrays, keeps: jax.Array | None, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _forward(how, arrays, keeps, state)[:2]


def _forward(
    how: _How, arrays: _Arrays, keeps: jax.Array | None, state: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs, the last state, and the states before each chunk, in the order that they are taken in."""

    def step(before: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        state, o = before
        chunk = _chunk(how, arrays, keeps, index, state.dtype)
        q, k = how.features(chunk.q, chunk.k)
        part, later = one.forward(chunk._replace(q=q, k=k), state, how.inclusive, how.base)
        return (later, _written(how, o, part, index)), state

    (state, o), states = jax.lax.scan(step, (state, jnp.zeros_like(arrays.v)), _order(how, arrays))
    return o, state, states


def _run_forward(
    how: _How, arrays: _Arrays, keeps: jax.Array | None, state: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    o, last, states = _forward(how, arrays, keeps, state)
    return (o, last), (arrays, keeps, states)


def _run_backward(how: _How, kept: Any, slopes: tuple[jax.Array, jax.Array]) -> tuple[_Arrays, None, jax.Array]:
    (arrays, keeps, states), (do, dstate) = kept, slopes

    def step(after: tuple[jax.Array, _Arrays], at: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        (dstate, found), (index, state) = after, at
        chunk, near = _chunk(how, arrays, keeps, index, state.dtype), _part(how, do, index, state.dtype)
        (q, k), of_features = jax.vjp(how.features, chunk.q, chunk.k)
        chunk = chunk._replace(q=q, k=k)
        dq, dk, *parts, dstate = one.backward(chunk, state, near, dstate, how.inclusive, how.base)
        parts = [*of_features((dq, dk)), *parts]
        there = [x for x in parts if x is not None]
        written = (_written(how, x, part, index) for x, part in zip(jax.tree.leaves(found), there, strict=True))
        return (dstate, jax.tree.unflatten(jax.tree.structure(found), written)), None

    begin = dstate, jax.tree.map(jnp.zeros_like, arrays)
    (dstate, found), _ = jax.lax.scan(step, begin, (_order(how, arrays), states), reverse=True)
    return found, None, dstate


_run.defvjp(_run_forward, _run_backward)


def _order(how: _How, arrays: _Arrays) -> jax.Array:
    """The indices of chunks, in the order that they are taken in."""
    indices = jnp.arange(arrays.q.shape[1] // how.steps, dtype=jnp.int32)
    return indices[::-1] if how.reverse else indices


def _chunk(how: _How, arrays: _Arrays, keeps: jax.Array | None, index: jax.Array, dtype: Any) -> one.Chunk:
    parts = (None if x is None else _part(how, x, index, dtype) for x in (*arrays, keeps))
    return one.Chunk(*parts)  # type: ignore[arg-type]


def _part(how: _How, x: jax.Array, index: jax.Array, dtype: Any) -> jax.Array:
    """The steps of a chunk, [B, N, C, X], in the order that they are taken in."""
    part = jax.lax.dynamic_slice_in_dim(x, index * how.steps, how.steps, axis=1)
    return _turned(how, jnp.moveaxis(part, 1, 2).astype(dtype))


def _turned(how: _How, x: jax.Array) -> jax.Array:
    return jnp.flip(x, axis=2) if how.reverse else x


def _written(how: _How, x: jax.Array, part: jax.Array, index: jax.Array) -> jax.Array:
    """An array with the steps of a chunk put in their place."""
    part = jnp.moveaxis(_turned(how, part), 2, 1).astype(x.dtype)
    return jax.lax.dynamic_update_slice_in_dim(x, part, index * how.steps, axis=1)
