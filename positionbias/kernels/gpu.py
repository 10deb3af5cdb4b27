"""What the Mosaic GPU kernels share: names of its own, sums in registers, products, and writing."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

plgpu: Any = mosaic_gpu  # untyped: it differs from release to release of jax
STRIP = 64  # rows of a warpgroup's matrix product
COPYING = 40  # registers a thread of the warpgroup that copies
AHEAD = 2  # steps whose copies are under way or in use


def zeros(*shape: int, value: float = 0.0) -> jax.Array:
    """Sums to begin with: a matrix, or a number for each row."""
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def matmul(x: Any, y: Any, shape: tuple[int, ...], *more: tuple[Any, Any]) -> jax.Array:
    """x y of two matrices in shared memory, summed in float32, and on top of it the products of more such pairs."""

    def body(total: Any) -> jax.Array:
        for left, right in ((x, y), *more):
            plgpu.wgmma(total, left, right)
        return total[...]

    return pl.run_scoped(body, plgpu.ACC(shape, jnp.float32))


def flipped(x: Any) -> Any:
    """x' of a matrix in shared memory."""
    return x.transpose((1, 0))


def stored(ref: Any, value: jax.Array) -> None:
    """Write to an array in the memory of the chip."""
    value = value.astype(ref.dtype)
    if hasattr(plgpu, "store"):  # where it is, an assignment takes whole sectors of memory alone
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def interpreted(params: Any) -> Any:
    """The context to run a kernel in: that of the interpreter if it has parameters."""
    return contextlib.nullcontext() if params is None else plgpu.force_gpu_interpret_mode(params)
