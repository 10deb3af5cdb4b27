"""The driver for plain attention on an NVIDIA GPU: cuDNN, by `jax.nn.dot_product_attention`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.drivers import capability
from positionbias.kernels.softmax_attention.problem import Problem, Stats

LARGEST_HEAD = 128  # which every generation from Ampere on takes
MULTIPLE = 8
OLDEST = 8.0  # compute capability, that of Ampere


def unsupported_reason(problem: Problem, platform: str) -> str | None:
    """Why cuDNN cannot do it."""
    sizes = problem.q.shape[-1], problem.v.shape[-1]
    if platform != "gpu":
        return f"the platform is {platform}, and cuDNN is for gpu"
    found = capability(platform)
    if found == 0:
        return "this GPU is none of NVIDIA's"
    if found is not None and found < OLDEST:
        return f"this GPU is of compute capability {found}, and 16 bits want {OLDEST}"
    if problem.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"q is {problem.q.dtype}, and cuDNN takes bfloat16 and float16"
    if problem.plain is None:
        return "the mask is another than none and causal"
    if problem.score is not None:
        return "scores are changed by a rule"
    if problem.stats:
        return f"it gives no {problem.stats[0]}"
    if problem.dropout is not None:
        return "weights are dropped by a hash of their place"
    if not problem.normalise:
        return "weights are not normalised"
    if sizes[0] != sizes[1] or sizes[0] > LARGEST_HEAD or sizes[0] % MULTIPLE:
        return f"head sizes are {sizes[0]} and {sizes[1]}, and cuDNN takes equal multiples of 8 up to {LARGEST_HEAD}"
    return None


def run(problem: Problem) -> tuple[Float[jax.Array, "B T N K"], Stats]:
    """The attention by cuDNN."""
    causal = problem.plain == "causal"
    found = jax.nn.dot_product_attention(
        problem.q, problem.k, problem.v, scale=problem.scale, is_causal=causal, implementation="cudnn"
    )
    return found, Stats()
