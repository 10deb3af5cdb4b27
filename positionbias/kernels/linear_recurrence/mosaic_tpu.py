"""The driver for TPU, by Pallas and Mosaic; in interpret mode it runs on any machine, slowly, for tests."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.linear_recurrence.problem import Problem, power_from
from positionbias.kernels.linear_recurrence.tpu_kernels import Arrays, How, backward, forward
from positionbias.kernels.softmax_attention.mosaic_tpu import LANES, SUBLANES, unsupported_type
from positionbias.kernels.tpu_chunks import too_large

CHUNK = 128  # steps: as many as rows and columns of a product on the chip
BY_CHANNEL = 32  # with decays by channel, whose gradients are sums over a chunk, and as precise as it is short


def unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why the TPU kernels cannot do it."""
    if platform != "tpu":
        return f"the platform is {platform}, and these kernels are for tpu"
    why = interpret_unsupported_reason(problem, platform)
    if why is not None:
        return why
    least = SUBLANES[problem.q.dtype.itemsize]
    if problem.chunk is not None and problem.chunk < least:
        return f"chunk = {problem.chunk} is less than {least} steps"
    return _too_large(problem)


def interpret_unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why they cannot do it even in interpret mode."""
    return unsupported_type(problem)


def _too_large(problem: Problem) -> str | None:
    """Why vector memory is too small: by a bound a little above what the compiler takes."""
    *_, size, width = problem.sizes
    steps = _steps(problem)
    keys, values = (-(-n // LANES) * LANES for n in (size, width))
    parts = steps.bit_length() - 1 if problem.by_channel else 0  # each with products of decays
    of_keys = 14 + 2 * parts * (problem.log_decay is not None)
    of_values = 12 + 3 * parts * (problem.value_log_decay is not None)
    rows = steps * (
        of_keys * keys + of_values * values + 4 * LANES * (problem.resets is not None)
    )  # inputs and outputs twice, and what is between
    states = 16 * -(-size // 8) * 8 * values
    return too_large(steps, (size, width), rows + states + (12 + parts) * steps * max(steps, LANES))


def _steps(problem: Problem) -> int:
    """Of a chunk: no longer than it must be for all steps, and at least a tile of the array's type."""
    longest = problem.chunk or (BY_CHANNEL if problem.by_channel else CHUNK)
    return max(min(longest, power_from(problem.sizes[1])), SUBLANES[problem.q.dtype.itemsize])


def run(problem: Problem, interpret: Any = False) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N H K"]]:
    """The recurrence by the TPU kernels."""
    problem = problem.mapped
    length, steps = problem.sizes[1], _steps(problem)
    more = -length % steps  # steps that keep the state as it is: their keys are 0, and so are the logarithms

    def taken(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 2, 1)
        return jnp.pad(jnp.flip(x, axis=2) if problem.reverse else x, [(0, 0), (0, 0), (0, more), (0, 0)])

    resets = None if problem.resets is None else problem.resets[..., None, None].astype(problem.sum_dtype)
    told = Arrays(problem.q, problem.k, problem.v, problem.log_decay, problem.value_log_decay, resets)
    arrays = jax.tree.map(taken, told)
    o, state = _run(How(steps, problem.inclusive, interpret), arrays, problem.initial_state)
    o = o[:, :, :length]
    return jnp.moveaxis(jnp.flip(o, axis=2) if problem.reverse else o, 1, 2), state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(how: How, arrays: Arrays, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    return forward(how, arrays, state, keep=False)[:2]


def _run_forward(how: How, arrays: Arrays, state: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
    o, last, states = forward(how, arrays, state, keep=True)
    return (o, last), (arrays, states)


def _run_backward(how: How, kept: Any, slopes: tuple[jax.Array, jax.Array]) -> tuple[Arrays, jax.Array]:
    (arrays, states), (do, dlast) = kept, slopes
    return backward(how, arrays, states, do, dlast)


_run.defvjp(_run_forward, _run_backward)
