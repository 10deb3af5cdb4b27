"""Where the drivers for Hopper GPUs run, and what those of recurrences take; apart from what not every jax imports."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from positionbias.kernels.drivers import capability

HOPPER = 9.0  # compute capability: the matrix products of the kernels are in no other generation
CHUNK = 64  # steps of a recurrence: rows of a warpgroup's matrix product
KEYS = 64  # heads of keys are padded to a multiple of it: a state has so many rows of a product
WIDEST_KEYS = 128  # for which the sums of the gradient fit into registers


def elsewhere(platform: str) -> str | None:
    """Why the kernels do not run on this machine."""
    if platform != "gpu":
        return f"the platform is {platform}, and these kernels are for gpu"
    found = capability(platform)
    if found is not None and not HOPPER <= found < HOPPER + 1:
        return f"this GPU is of another generation than Hopper, whose compute capability is {HOPPER}"
    return None


def old_jax() -> str | None:
    """Why this jax does not compile them."""
    if jax.__version_info__ < (0, 11):
        return f"jax is {jax.__version__}, and Mosaic GPU needs 0.11"
    return None


def wrong_type(q: jax.Array) -> str | None:
    """Why the kernels of recurrences cannot take these arrays."""
    if q.dtype != jnp.bfloat16:
        return f"q is {q.dtype}, and these kernels take bfloat16, to which they round states"
    return None


def wrong_sizes(chunk: int | None, size: int) -> str | None:
    """Nor chunks of so many steps and heads of q of this size."""
    if chunk not in (None, CHUNK):
        return f"chunk = {chunk}, and these kernels take {CHUNK} steps at a time"
    if size > WIDEST_KEYS:
        return f"the head size of q is {size}, above {WIDEST_KEYS}"
    return None
