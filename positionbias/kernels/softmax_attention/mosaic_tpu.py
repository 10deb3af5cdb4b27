"""The driver for TPU, by Pallas and Mosaic; in interpret mode it runs on any machine, slowly, for tests."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.differences import by_difference
from positionbias.kernels.softmax_attention import operands, tpu_backward, tpu_forward, tpu_pairs
from positionbias.kernels.softmax_attention.block_map import MOST_ENTRIES
from positionbias.kernels.softmax_attention.fused import Kernels, attend
from positionbias.kernels.softmax_attention.problem import Problem, Stats

LANES = 128
SUBLANES = {4: 8, 2: 16}  # rows of a tile in vector memory, by the bytes of a number
VECTOR_MEMORY = 16 << 20  # bytes that a kernel may take on every generation
# What rules may say and TPU kernels cannot, by the compilers of jax 0.10 to 0.12; of erf it is the gradient.
NOT_THERE = frozenset(
    """acos acosh asin asinh atan atanh cbrt copy cosh erf erfc expm1 reduce_precision sinh
    float16 float64 int64 uint64""".split()  # noqa: SIM905
)


def unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why the TPU kernels cannot do it."""
    if platform != "tpu":
        return f"the platform is {platform}, and these kernels are for tpu"
    return (
        interpret_unsupported_reason(problem, platform)
        or _not_there(problem)
        or _untiled(problem)
        or _too_large(problem)
    )


def interpret_unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why they cannot do it even in interpret mode."""
    return unsupported_type(problem) or operands.unsupported(problem)


def unsupported_type(problem: Any) -> str | None:
    """Why they cannot take the type of q, which that of k and v is too."""
    if problem.q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"q is {problem.q.dtype}, and these kernels take float32 and bfloat16"
    return None


def _not_there(problem: Problem) -> str | None:
    for name, rule in (("mask", problem.allowed), ("score", problem.score)):
        found = sorted(rule.uses & NOT_THERE) if rule is not None else []
        if found:
            return f"{name} uses {found[0]}, which kernels for tpu do not have"
    return None


def _untiled(problem: Problem) -> str | None:
    rows, columns = problem.block_sizes
    least = SUBLANES[problem.q.dtype.itemsize]
    _, t, s, _, _ = problem.sizes
    if rows % least and rows < t:
        return f"block_sizes[0] = {rows} is no multiple of {least}"
    if columns % LANES and columns < s:
        return f"block_sizes[1] = {columns} is no multiple of {LANES}"
    return None


def _too_large(problem: Problem) -> str | None:
    """Why a memory on the chip is too small: by a bound a little above what the compiler takes."""
    (bq, bk), (_, t, s, _, _) = problem.block_sizes, problem.sizes
    tiles = -(-t // bq) * -(-s // bk)
    if tiles > MOST_ENTRIES:
        return f"{tiles} tiles are more than the {MOST_ENTRIES} that scalar memory lists; larger block_sizes make fewer"
    read = [x for rule in (problem.allowed, problem.score) if rule is not None for x in rule.operands]
    numbers = sum(math.prod(x.shape[:2]) for x in read if x.shape[2:] == (1, 1))
    whole = sum(by_difference(x) or min(x.shape[2:]) > 1 for x in read)
    if numbers > MOST_ENTRIES:
        return f"mask and score read {numbers} single numbers, and scalar memory takes {MOST_ENTRIES}"
    tile = bq * bk * (7 + 3 * (problem.score is not None) + 3 * whole)
    width = sum(-(-x.shape[-1] // LANES) * LANES for x in (problem.k, problem.v))
    blocks = width * max(9 * bq + 5 * bk, 5 * bq + 11 * bk) // 2  # inputs and outputs twice, and sums
    # A sum a row takes the space of a row of lanes, and gradients of operands are such sums.
    sums = 8 * bq * LANES * sum(x.shape[-1] == 1 and jnp.issubdtype(x.dtype, jnp.floating) for x in read)
    mebibytes = 4 * (tile + blocks + sums) / (1 << 20)
    if mebibytes > VECTOR_MEMORY >> 20:
        return (
            f"tiles of {bq} x {bk} with heads of {problem.k.shape[-1]} need about {mebibytes:.0f} MiB of vector"
            f" memory, of which a kernel gets {VECTOR_MEMORY >> 20}"
        )
    return None


def run(problem: Problem, interpret: Any = False) -> tuple[Float[jax.Array, "B T N K"], Stats]:
    """The attention by the TPU kernels."""
    kernels = Kernels(
        forward=functools.partial(tpu_forward.forward, interpret),
        rows=functools.partial(tpu_backward.rows, interpret),
        columns=functools.partial(tpu_backward.columns, interpret),
        head_multiple=1,
        pairs=functools.partial(tpu_pairs.pairs, interpret),
    )
    return attend(problem, kernels)
