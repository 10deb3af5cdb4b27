"""What recurrences share on a TPU: a grid step is a chunk of one head, between which states stay in vector memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from positionbias.kernels.softmax_attention.mosaic_tpu import VECTOR_MEMORY

Refs = dict[str, Any]
Named = Mapping[str, Any]  # arrays, or shapes and types of arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """What kernels read or write, by name: what is of each step, of each chunk, and of each head."""

    steps: Named  # [B, N, T, *], or [B, 1, T, *] for all heads
    chunks: Named  # [B, N, T / C, H, K]
    heads: Named  # [B, N, H, K]

    @property
    def all(self) -> dict[str, Any]:
        """In the order that a kernel has them."""
        return {**self.steps, **self.chunks, **self.heads}

    def specs(self, size: int, chunk: Callable[[Any], Any]) -> list[pl.BlockSpec]:
        """Where a grid step finds them: that of chunk number `chunk(at)` of `size` steps."""
        lead = (None, None)

        def of_steps(x: Any) -> pl.BlockSpec:
            heads = x.shape[1] > 1
            return pl.BlockSpec((*lead, size, x.shape[3]), lambda b, n, i: (b, n * heads, chunk(i), 0))

        def of_chunk(x: Any) -> pl.BlockSpec:
            return pl.BlockSpec((*lead, None, *x.shape[3:]), lambda b, n, i: (b, n, chunk(i), 0, 0))

        def of_head(x: Any) -> pl.BlockSpec:
            return pl.BlockSpec((*lead, *x.shape[2:]), lambda b, n, i: (b, n, 0, 0))

        groups = ((of_steps, self.steps), (of_chunk, self.chunks), (of_head, self.heads))
        return [spec(x) for spec, named in groups for x in _of(named)]


def too_large(steps: int, sizes: tuple[int, int], numbers: int) -> str | None:
    """Why vector memory cannot hold so many numbers of 32 bits, for chunks of `steps`, keys and values of `sizes`."""
    mebibytes = 4 * numbers / (1 << 20)
    if mebibytes > VECTOR_MEMORY >> 20:
        return (
            f"chunks of {steps} steps with keys of {sizes[0]} and values of {sizes[1]} need about {mebibytes:.0f} MiB"
            f" of vector memory, of which a kernel gets {VECTOR_MEMORY >> 20}"
        )
    return None


def _of(named: Named) -> list[Any]:
    return list(named.values())


def by_chunks(
    size: int,
    read: Blocks,
    write: Blocks,
    sums: Mapping[str, tuple[int, ...]],
    body: Callable[[Refs, Any], None],
    chunk: Callable[[Any], Any],
    interpret: Any,
) -> dict[str, jax.Array]:
    """Run `body(refs, at)` for the chunks of each head, in the order of `chunk(at)`; `sums` stay between them."""
    first = _of(read.steps)[0]
    names = [*read.all, *write.all, *sums]

    def kernel(*refs: Any) -> None:
        body(dict(zip(names, refs, strict=True)), pl.program_id(2))

    found = pl.pallas_call(
        kernel,
        grid=(*first.shape[:2], first.shape[2] // size),
        in_specs=read.specs(size, chunk),
        out_specs=write.specs(size, chunk),
        out_shape=_of(write.all),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums.values()],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(*_of(read.all))
    return dict(zip(write.all, found, strict=True))
