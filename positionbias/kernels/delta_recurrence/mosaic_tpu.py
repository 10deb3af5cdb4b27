"""The driver for TPU, by Pallas and Mosaic; in interpret mode it runs on any machine, slowly, for tests."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.delta_recurrence.problem import Problem
from positionbias.kernels.delta_recurrence.tpu_kernels import Arrays, How, States, backward, forward
from positionbias.kernels.softmax_attention.mosaic_tpu import LANES, SUBLANES, unsupported_type
from positionbias.kernels.tpu_chunks import too_large

CHUNK = 64  # steps, unless told


def unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why the TPU kernels cannot do it."""
    if platform != "tpu":
        return f"the platform is {platform}, and these kernels are for tpu"
    return interpret_unsupported_reason(problem, platform) or _too_large(problem)


def interpret_unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why they cannot do it even in interpret mode."""
    return unsupported_type(problem)


def _too_large(problem: Problem) -> str | None:
    """Why vector memory is too small: by a bound a little above what the compiler takes."""
    *_, size, width = problem.sizes
    _, steps = _steps(problem)
    keys, values = (-(-n // LANES) * LANES for n in (size, width))
    count = len(problem.states)
    rows = steps * (14 * keys + 14 * values + 8 * count * LANES)  # inputs and outputs twice, and what is between
    states = (8 + 7 * count) * -(-size // 8) * 8 * values
    squares = (6 + 13 * count) * steps * -(-steps // LANES) * LANES
    return too_large(steps, (size, width), rows + states + squares)


def _steps(problem: Problem) -> tuple[int, int]:
    """Of a chunk, and with rows of zeros to whole tiles of the array's type."""
    steps, least = min(problem.chunk or CHUNK, problem.sizes[1]), SUBLANES[problem.q.dtype.itemsize]
    return steps, -(-steps // least) * least


def run(
    problem: Problem, interpret: Any = False
) -> tuple[Float[jax.Array, "B T N K"], tuple[Float[jax.Array, "B N H K"], ...]]:
    """The recurrence by the TPU kernels."""
    length, (steps, padded) = problem.sizes[1], _steps(problem)
    count = -(-length // steps)

    def taken(x: jax.Array) -> jax.Array:
        x = jnp.pad(jnp.moveaxis(x, 2, 1), [(0, 0), (0, 0), (0, count * steps - length), (0, 0)])
        x = x.reshape(*x.shape[:2], count, steps, x.shape[3])
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, padded - steps), (0, 0)])
        return x.reshape(*x.shape[:2], count * padded, x.shape[4])

    arrays = Arrays(*(taken(x) for x in (problem.q, problem.k, problem.v, problem.gates)))
    o, states = _run(How(problem.advance, padded, interpret), arrays, problem.states)
    o = o.reshape(*o.shape[:2], count, padded, o.shape[3])[:, :, :, :steps]
    return jnp.moveaxis(o.reshape(*o.shape[:2], count * steps, o.shape[4])[:, :, :length], 1, 2), states


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(how: How, arrays: Arrays, states: States) -> tuple[jax.Array, States]:
    return forward(how, arrays, states, keep=False)[:2]


def _run_forward(how: How, arrays: Arrays, states: States) -> tuple[tuple[jax.Array, States], Any]:
    o, last, before = forward(how, arrays, states, keep=True)
    return (o, last), (arrays, before)


def _run_backward(how: How, kept: Any, slopes: tuple[jax.Array, States]) -> tuple[Arrays, States]:
    (arrays, before), (do, dlast) = kept, slopes
    return backward(how, arrays, before, do, dlast)


_run.defvjp(_run_forward, _run_backward)
