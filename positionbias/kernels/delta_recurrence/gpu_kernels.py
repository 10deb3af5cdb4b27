"""The kernels for Mosaic GPU, forwards and backwards: what of the delta rule goes from chunk to chunk.

Products are of 16-bit numbers, summed in 32 bits: a state is rounded where it is multiplied, and handed on in 32 bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from positionbias.arrays import Float
from positionbias.kernels.gpu import STRIP, flipped, matmul, plgpu
from positionbias.kernels.gpu_chunks import Carry, Chunks, Moving, States, Visit, cut, steps, whole_matrix

WIDEST = 64  # values of a part, whose sums fit into registers
BESIDE_WIDE_KEYS = 32  # and of one beside keys of more than a strip: compiled for sm_90a, more spill


class Arrays(NamedTuple):
    """Of whole chunks, see `chunk.Parts`."""

    reads: Float[jax.Array, "B N T H"]
    until: Float[jax.Array, "B N T H"]
    corrects: Float[jax.Array, "B N T H"]
    ahead: Float[jax.Array, "B N T K"]
    keep: Float[jax.Array, "B N chunks"]
    lost: Float[jax.Array, "B N chunks"]


class _Kernel:
    """The sizes of a kernel, and how it reads."""

    def __init__(self, arrays: Arrays, backwards: bool, interpret: Any) -> None:
        batch, heads, self.length, self.size = arrays.reads.shape
        self.width, parts = part_of(arrays.ahead.shape[3], self.size)
        self.count, self.dtype = self.length // STRIP, arrays.reads.dtype
        self.states = States(self.size, self.width)
        self.chunks = Chunks(batch, heads, parts, self.count, backwards, interpret)
        self.of_keys = {
            name: Moving(getattr(arrays, name), (STRIP, self.size)) for name in ("reads", "until", "corrects")
        }
        self.scalars = {"keep": arrays.keep, "lost": arrays.lost}

    def values(self, x: jax.Array) -> Moving:
        """[B, N, T, K]."""
        return Moving(x, (STRIP, self.width), parted=True)


def part_of(values: int, keys: int) -> tuple[int, int]:
    """How many values a part has, a power of two, and how many parts there are."""
    most = WIDEST if keys <= STRIP else BESIDE_WIDE_KEYS
    width = min(most, max(16, 1 << (values - 1).bit_length()))
    return width, -(-values // width)


def forward(
    interpret: Any, arrays: Arrays, state: Float[jax.Array, "B N H K"], keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """What is read of states, what is written, the last state, and those before each chunk [B, N, T / C H, K]."""
    kernel = _Kernel(arrays, False, interpret)
    size, width, states = kernel.size, kernel.width, kernel.states

    def start(here: Visit) -> Carry:
        return states.begun(here, "first")

    def step(here: Visit, carry: Carry) -> Carry:
        refs, place = here.refs, (steps(here), states.part(here))
        plgpu.commit_smem()  # all threads are done with the chunk before, whose matrices are written over
        for at, state in carry.items():
            rounded = state.astype(kernel.dtype)
            refs["state"].at[cut(at), :][...] = rounded
            if keep:
                here.put("states", rounded, pl.ds(here.chunk * size + int(at), STRIP), place[1])
        plgpu.commit_smem()
        here.put("read", matmul(refs["reads"], refs["state"], (STRIP, width)), *place)
        ahead = whole_matrix(refs["ahead"]).astype(jnp.float32)
        written = (ahead - matmul(refs["corrects"], refs["state"], (STRIP, width))).astype(kernel.dtype)
        here.put("written", written, *place)
        refs["shared"][...] = written
        plgpu.commit_smem()
        found = {}
        for at, state in carry.items():
            more = matmul(flipped(refs["until"].at[:, cut(at)]), refs["shared"], (STRIP, width))
            found[at] = states.kept(here, state) + more
        return found

    def finish(here: Visit, carry: Carry) -> None:
        states.ended(here, "last", carry)

    batch, heads, _, values = arrays.ahead.shape
    outputs = {
        "read": jax.ShapeDtypeStruct(arrays.ahead.shape, jnp.float32),
        "written": jax.ShapeDtypeStruct(arrays.ahead.shape, kernel.dtype),
        "last": jax.ShapeDtypeStruct(state.shape, jnp.float32),
    }
    if keep:
        outputs["states"] = jax.ShapeDtypeStruct((batch, heads, kernel.count * size, values), kernel.dtype)
    moving = kernel.of_keys | {"ahead": kernel.values(arrays.ahead)}
    shared = {"state": (size, width), "shared": (STRIP, width)}
    whole = {"first": state, **kernel.scalars}
    found = kernel.chunks.run("delta_forward", moving, whole, outputs, shared, start, step, finish)
    return found["read"], found["written"], found["last"], found.get("states")


def backward(
    interpret: Any,
    arrays: Arrays,
    written: Float[jax.Array, "B N T K"],
    states: jax.Array,
    dread: Float[jax.Array, "B N T K"],
    dwritten: Float[jax.Array, "B N T K"],
    dlast: Float[jax.Array, "B N H K"],
) -> tuple[Arrays, Float[jax.Array, "B N H K"]]:
    """Gradients of the arrays and of the first state, chunks from the last to the first."""
    kernel = _Kernel(arrays, True, interpret)
    size, width, handed = kernel.size, kernel.width, kernel.states

    def start(here: Visit) -> Carry:
        return handed.begun(here, "dlast")

    def step(here: Visit, carry: Carry) -> Carry:
        refs, square = here.refs, (STRIP, STRIP)
        plgpu.commit_smem()  # as forwards
        for at, state in carry.items():
            refs["dstate"].at[cut(at), :][...] = state.astype(kernel.dtype)
        plgpu.commit_smem()
        slope = whole_matrix(refs["dwritten"]).astype(jnp.float32)
        slope = (slope + matmul(refs["until"], refs["dstate"], (STRIP, width))).astype(kernel.dtype)
        here.put("dahead", slope, steps(here), handed.part(here))
        refs["shared"][...] = -slope  # what was read of the state was taken off
        plgpu.commit_smem()
        found = {}
        for at in carry:
            place = here.part, steps(here), cut(at)
            before, dstate = (flipped(refs[name].at[cut(at), :]) for name in ("states", "dstate"))
            here.put("dreads", matmul(refs["dread"], before, square), *place)
            here.put("dcorrects", matmul(refs["shared"], before, square), *place)
            here.put("duntil", matmul(refs["written"], dstate, square), *place)
        for at, state in carry.items():
            overlap = whole_matrix(refs["states"].at[cut(at), :]).astype(jnp.float32) * state
            here.put("overlap", jnp.sum(overlap, axis=1), here.part, here.chunk, cut(at))
            state = handed.kept(here, state)
            reads, corrects = (flipped(refs[name].at[:, cut(at)]) for name in ("reads", "corrects"))
            found[at] = state + matmul(reads, refs["dread"], (STRIP, width), (corrects, refs["shared"]))
        return found

    def finish(here: Visit, carry: Carry) -> None:
        handed.ended(here, "dfirst", carry)

    parts = (*arrays.ahead.shape[:2], kernel.chunks.parts)
    of_keys = jax.ShapeDtypeStruct((*parts, kernel.length, size), jnp.float32)
    outputs = {f"d{name}": of_keys for name in ("reads", "until", "corrects")}
    outputs["dahead"] = jax.ShapeDtypeStruct(arrays.ahead.shape, kernel.dtype)
    outputs["dfirst"] = jax.ShapeDtypeStruct(dlast.shape, jnp.float32)
    outputs["overlap"] = jax.ShapeDtypeStruct((*parts, kernel.count, size), jnp.float32)
    moving = dict(kernel.of_keys)
    moving |= {"written": kernel.values(written), "dread": kernel.values(dread), "dwritten": kernel.values(dwritten)}
    moving["states"] = Moving(states, (size, width), parted=True)
    shared = {"dstate": (size, width), "shared": (STRIP, width)}
    whole = {"dlast": dlast, **kernel.scalars}
    found = kernel.chunks.run("delta_backward", moving, whole, outputs, shared, start, step, finish)
    dreads, duntil, dcorrects = (
        jnp.sum(found[f"d{name}"], axis=2).astype(kernel.dtype) for name in ("reads", "until", "corrects")
    )
    # What is kept and what is lost are both times the state.
    overlap = jnp.sum(found["overlap"], axis=(2, 4))
    return Arrays(dreads, duntil, dcorrects, found["dahead"], overlap, overlap), found["dfirst"]
