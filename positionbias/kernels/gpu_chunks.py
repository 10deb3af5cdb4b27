"""What recurrences share on a Hopper GPU: a block of threads takes the chunks of one head, one after another.

One warpgroup computes and keeps the state in registers; another copies what the next chunks need. Values are cut in
parts that know nothing of each other, each with a block of threads of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from positionbias.kernels.gpu import AHEAD, COPYING, STRIP, interpreted, plgpu, stored

Carry = dict[str, jax.Array]


class Moving(NamedTuple):
    """What each step reads a block of: [B, N, L, X]."""

    array: jax.Array
    block: tuple[int, int]
    parted: bool = False  # whether blocks lie along X, one for each part of the values; else there is one
    vectors: bool = False  # whether chunks lie along X, and L has one block


class Visit(NamedTuple):
    """Where a step is, and what it reads or writes by name."""

    batch: jax.Array
    head: jax.Array
    part: jax.Array  # of the values
    chunk: jax.Array
    refs: dict[str, Any]  # of what moves, the block of this step; all else is whole

    def vector(self, at: int, axis: int, width: int) -> jax.Array:
        """One of the vectors of the chunk in `told`, in every column of a matrix for axis 0, or in every row for 1."""
        layout = plgpu.Layout.WGMMA.reduce(1 - axis)
        found = plgpu.load(self.refs["told"].at[at], layout=layout, optimized=False)
        return lax.broadcast_in_dim(found, (STRIP, width), (axis,))

    def put(self, name: str, value: jax.Array, *at: Any) -> None:
        """Write to [B, N, *]."""
        stored(self.refs[name].at[(self.batch, self.head, *at)], value)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The steps of a kernel: all chunks of each part of each head."""

    batch: int
    heads: int
    parts: int
    count: int
    backwards: bool
    interpret: Any

    def run(
        self,
        name: str,
        moving: Mapping[str, Moving],
        whole: Mapping[str, jax.Array],
        outputs: Mapping[str, jax.ShapeDtypeStruct],
        shared: Mapping[str, tuple[int, int]],
        start: Callable[[Visit], Carry],
        step: Callable[[Visit, Carry], Carry],
        finish: Callable[[Visit, Carry], None],
    ) -> dict[str, jax.Array]:
        """Run a kernel: `start` gives what a head's chunks hand on, each `step` the next; they write to the outputs.

        `shared` are matrices in shared memory, of the type of those that move.
        """
        matrices = [one for one in moving.values() if not one.vectors]
        dtype = matrices[0].array.dtype
        widths = [one.block[1] for one in matrices] + [shape[1] for shape in shared.values()]
        longest = math.gcd(STRIP, *widths)
        transforms = plgpu.TilingTransform((8, longest)), plgpu.SwizzleTransform(longest * dtype.itemsize)

        def chunk(at: Any) -> Any:
            return self.count - 1 - at if self.backwards else at

        def kernel(*refs: Any) -> None:
            named = dict(zip([*moving, *whole, *outputs, *shared], refs, strict=True))
            batch, head, part = (lax.axis_index(name) for name in ("batch", "head", "part"))

            def visit(at: Any, found: Mapping[str, Any]) -> Visit:
                return Visit(batch, head, part, chunk(at), named | dict(found))

            def stepped(indices: Any, *given: Any) -> Carry:
                *found, carry = given
                return step(visit(indices[0], dict(zip(moving, found, strict=True))), carry)

            def computed(pipeline: Any) -> None:
                here = visit(jnp.int32(0), {})
                finish(here, pipeline(start(here)))

            def spec(one: Moving) -> Any:
                if one.vectors:
                    return plgpu.BlockSpec(one.block, lambda at: (0, chunk(at)))
                return plgpu.BlockSpec(
                    one.block, lambda at: (chunk(at), part if one.parted else 0), transforms=transforms
                )

            plgpu.emit_pipeline_warp_specialized(
                stepped,
                grid=(self.count,),
                in_specs=[spec(one) for one in moving.values()],
                max_concurrent_steps=min(AHEAD, self.count),
                wg_axis="group",
                num_compute_wgs=1,
                memory_registers=COPYING,
                compute_context=computed,
            )(*(named[name].at[batch, head] for name in moving))

        kernel.__name__ = name
        run = plgpu.kernel(
            kernel,
            out_type=list(outputs.values()),
            scratch_types=[plgpu.SMEM(shape, dtype, transforms=transforms) for shape in shared.values()],
            grid=(self.parts, self.heads, self.batch),
            grid_names=("part", "head", "batch"),
            num_threads=2,
            thread_name="group",
        )
        with interpreted(self.interpret):
            found = run(*(one.array for one in moving.values()), *whole.values())
        return dict(zip(outputs, found, strict=True))


@dataclasses.dataclass(frozen=True)
class States:
    """States [H, K] as chunks hand them on: strips of a part of their values, by the first row of each."""

    size: int  # H, whole strips
    width: int  # of a part

    def part(self, here: Visit) -> Any:
        """The values of the part."""
        return pl.ds(here.part * self.width, self.width)

    def begun(self, here: Visit, name: str) -> Carry:
        """What the first chunk is handed."""
        ref = here.refs[name].at[here.batch, here.head]
        return {str(at): whole_matrix(ref.at[pl.ds(at, STRIP), self.part(here)]) for at in range(0, self.size, STRIP)}

    def ended(self, here: Visit, name: str, carry: Carry) -> None:
        """Write what the last chunk hands on."""
        for at, state in carry.items():
            here.put(name, state, cut(at), self.part(here))

    def kept(self, here: Visit, state: jax.Array) -> jax.Array:
        """What a chunk leaves of it: state keep + state lost, where there are such numbers of each chunk."""
        if "keep" not in here.refs:
            return state
        keep, lost = (here.refs[name][here.batch, here.head, here.chunk] for name in ("keep", "lost"))
        return state * keep + state * lost


def cut(at: str) -> Any:
    """The rows of a state, or columns of queries and keys, that a strip has."""
    return pl.ds(int(at), STRIP)


def steps(here: Visit) -> Any:
    """The steps of the chunk."""
    return pl.ds(here.chunk * STRIP, STRIP)


def whole_matrix(ref: Any) -> jax.Array:
    """A matrix in the memory of the chip, as sums begin with."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)
