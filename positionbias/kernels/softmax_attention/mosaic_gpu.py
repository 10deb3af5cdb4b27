"""The driver for Hopper GPUs, by Pallas and Mosaic GPU; the interpreter of that runs it on any machine, for tests.

No chip has run it yet: that it compiles for one, and computes the right numbers in the interpreter, is all that is
known. So it is used where it is named, and by no ladder.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.hopper import elsewhere, old_jax
from positionbias.kernels.rules import ELEMENTWISE
from positionbias.kernels.softmax_attention import operands
from positionbias.kernels.softmax_attention.fused import Kernels, attend
from positionbias.kernels.softmax_attention.problem import Problem, Stats

STRIP = 64  # tiles are cut into strips of it
HEAD = 16  # head sizes are padded to a multiple of it
# Primitives that Mosaic GPU compiles on tiles, with what their derivatives are made of.
COMPILED = frozenset(
    """abs add and broadcast_in_dim clamp clz convert_element_type cos div eq exp exp2 ge gt integer_pow le log
    logistic lt max min mul ne neg not or rem reshape round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sqrt square squeeze sub tanh xor""".split()  # noqa: SIM905
)
WIDEST_HEAD = 128  # for which the sums of the gradient fit into registers


def unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why the kernels cannot do it on the chip."""
    return elsewhere(platform) or interpret_unsupported_reason(problem, platform)


def interpret_unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why they cannot do it even in the interpreter."""
    old = old_jax()
    if old:
        return old
    if problem.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"q is {problem.q.dtype}, and these kernels take bfloat16 and float16"
    for axis, size in enumerate(problem.block_sizes):
        if size % STRIP:
            return f"block_sizes[{axis}] = {size} is no multiple of {STRIP}"
    for name, x in (("q", problem.q), ("v", problem.v)):
        if x.shape[-1] > WIDEST_HEAD:
            return f"the head size of {name} is {x.shape[-1]}, above {WIDEST_HEAD}"
    for name, rule in (("mask", problem.allowed), ("score", problem.score)):
        for primitive in () if rule is None else sorted(rule.uses & ELEMENTWISE):
            if primitive not in COMPILED:
                return f"{name} takes {primitive}, which Mosaic GPU does not compile"
    return operands.unsupported(problem)


def run(problem: Problem, interpret: bool = False) -> tuple[Float[jax.Array, "B T N K"], Stats]:
    """The attention by the Mosaic GPU kernels."""
    # Only here, since what they import differs from release to release of jax, and not all have it.
    from positionbias.kernels.gpu import plgpu
    from positionbias.kernels.softmax_attention import gpu_backward, gpu_forward, pairs

    params = plgpu.InterpretGPUParams() if interpret else None
    kernels = Kernels(
        forward=functools.partial(gpu_forward.forward, params),
        rows=functools.partial(gpu_backward.rows, params),
        columns=functools.partial(gpu_backward.columns, params),
        pairs=pairs.pairs,
        head_multiple=HEAD,
    )
    return attend(problem, kernels)
