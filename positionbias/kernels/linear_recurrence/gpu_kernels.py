"""The kernels for Mosaic GPU, forwards and backwards: no decay, or one a head and step.

Products are of 16-bit numbers, summed in 32 bits: a state, weights, and what decays scale are rounded to the type of q
before they are multiplied, and the state itself is handed on in 32 bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from positionbias.arrays import Float
from positionbias.kernels.gpu import STRIP, flipped, matmul, plgpu
from positionbias.kernels.gpu_chunks import Carry, Chunks, Moving, Visit, whole_matrix

WIDEST = 64  # values of a part, whose state fits into registers


class How(NamedTuple):
    """What is known before the program runs."""

    inclusive: bool
    dtype: Any  # of outputs
    interpret: Any


class Told(NamedTuple):
    """What decays and resets say of each step of a chunk of `STRIP`, and of each chunk; None where they say nothing."""

    since: Float[jax.Array, "B N T"] | None  # product from the beginning of the chunk to the query
    until: Float[jax.Array, "B N T"] | None  # product from after the key to the end of the chunk
    sums: Float[jax.Array, "B N T"] | None  # of logarithms since the chunk began, to the step and its own
    reads: Float[jax.Array, "B N T"] | None  # that sum as a query meets it, where it is another
    runs: Float[jax.Array, "B N T"] | None  # how often the state was cleared until the step
    keep: Float[jax.Array, "B N chunks"] | None  # a state S is S keep + S lost after a chunk
    lost: Float[jax.Array, "B N chunks"] | None


VECTORS = ("since", "until", "sums", "reads", "runs")


class _Kernel:
    """The sizes of a kernel, and what decays do in it."""

    def __init__(self, how: How, q: jax.Array, v: jax.Array, told: Told, backwards: bool) -> None:
        batch, heads, length, self.size = q.shape
        self.width, parts = part_of(v.shape[3])
        self.how, self.count = how, length // STRIP
        self.chunks = Chunks(batch, heads, parts, self.count, backwards, how.interpret)
        self.names = [name for name in VECTORS if getattr(told, name) is not None]
        self.vectors: dict[str, Moving] = {}
        if self.names:
            pack = jnp.stack([getattr(told, name) for name in self.names], axis=2)
            self.vectors["told"] = Moving(pack, (len(self.names), STRIP), vectors=True)
        self.scalars = {name: x for name in ("keep", "lost") if (x := getattr(told, name)) is not None}

    def rows(self, x: jax.Array) -> Moving:
        """Queries or keys."""
        return Moving(x, (STRIP, self.size))

    def values(self, x: jax.Array) -> Moving:
        """Values or slopes of outputs."""
        return Moving(x, (STRIP, self.width), parted=True)

    def times(self, here: Visit, x: jax.Array, name: str) -> jax.Array:
        """Each row by a number of its step."""
        return x * here.vector(self.names.index(name), 0, x.shape[1]) if name in self.names else x

    def scaled(self, here: Visit, into: str, of: str, name: str) -> Any:
        """The block `of`, each row by a number of its step, in shared memory, where the next commit shows it."""
        if name not in self.names:
            return here.refs[of]
        x = here.refs[of][...]
        here.refs[into][...] = self.times(here, x.astype(jnp.float32), name).astype(x.dtype)
        return here.refs[into]

    def kept(self, here: Visit, state: jax.Array) -> jax.Array:
        """What a chunk leaves of a state."""
        if not self.scalars:
            return state
        keep, lost = (here.refs[name][here.batch, here.head, here.chunk] for name in ("keep", "lost"))
        return state * keep + state * lost

    def weights(self, here: Visit, *products: jax.Array) -> list[jax.Array]:
        """Products of queries and keys, each by the decays between the two; 0 where the key is not seen."""
        shape = (STRIP, STRIP)
        row, column = (
            plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1)
        )
        seen = row >= column if self.how.inclusive else row > column
        if "runs" in self.names:
            at = self.names.index("runs")
            seen &= here.vector(at, 0, STRIP) == here.vector(at, 1, STRIP)
        if "sums" not in self.names:
            return [jnp.where(seen, x, 0.0) for x in products]
        at = self.names.index("sums")
        read = self.names.index("reads") if "reads" in self.names else at
        decay = jnp.exp(jnp.minimum(here.vector(read, 0, STRIP) - here.vector(at, 1, STRIP), 0.0))
        decay = jnp.where(seen, decay, 0.0)
        return [x * decay for x in products]

    def of_chunk(self, here: Visit) -> Any:
        """The steps of the chunk."""
        return pl.ds(here.chunk * STRIP, STRIP)

    def of_part(self, here: Visit) -> Any:
        """The values of the part."""
        return pl.ds(here.part * self.width, self.width)


def part_of(values: int) -> tuple[int, int]:
    """How many values a part has, a multiple of 16, and how many parts there are."""
    parts = -(-values // WIDEST)
    return -(-values // (16 * parts)) * 16, parts


def forward(
    how: How, q: jax.Array, k: jax.Array, v: jax.Array, told: Told, state: Float[jax.Array, "B N H K"], keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Outputs, the last state, and the states before each chunk [B, N, T / C H, K] if they are to be kept."""
    kernel = _Kernel(how, q, v, told, backwards=False)
    size, width = kernel.size, kernel.width

    def start(here: Visit) -> Carry:
        return {"state": whole_matrix(here.refs["first"].at[here.batch, here.head, :, kernel.of_part(here)])}

    def step(here: Visit, carry: Carry) -> Carry:
        refs, state = here.refs, carry["state"]
        plgpu.commit_smem()  # all threads are done with the chunk before, whose matrices are written over
        rounded = state.astype(q.dtype)
        refs["state"][...] = rounded
        if keep:
            here.put("states", rounded, pl.ds(here.chunk * size, size), kernel.of_part(here))
        written = kernel.scaled(here, "written", "v", "until")
        (weights,) = kernel.weights(here, matmul(refs["q"], flipped(refs["k"]), (STRIP, STRIP)))
        refs["weights"][...] = weights.astype(q.dtype)
        plgpu.commit_smem()
        o = kernel.times(here, matmul(refs["q"], refs["state"], (STRIP, width)), "since")
        o += matmul(refs["weights"], refs["v"], (STRIP, width))
        here.put("o", o, kernel.of_chunk(here), kernel.of_part(here))
        return {"state": kernel.kept(here, state) + matmul(flipped(refs["k"]), written, (size, width))}

    def finish(here: Visit, carry: Carry) -> None:
        here.put("last", carry["state"], slice(None), kernel.of_part(here))

    batch, heads, length, values = v.shape
    outputs = {
        "o": jax.ShapeDtypeStruct(v.shape, how.dtype),
        "last": jax.ShapeDtypeStruct(state.shape, jnp.float32),
    }
    if keep:
        outputs["states"] = jax.ShapeDtypeStruct((batch, heads, kernel.count * size, values), q.dtype)
    moving = {"q": kernel.rows(q), "k": kernel.rows(k), "v": kernel.values(v), **kernel.vectors}
    shared = {"state": (size, width), "weights": (STRIP, STRIP)}
    if "until" in kernel.names:
        shared["written"] = (STRIP, width)
    whole = {"first": state, **kernel.scalars}
    found = kernel.chunks.run("recurrence_forward", moving, whole, outputs, shared, start, step, finish)
    return found["o"], found["last"], found.get("states")


class Slopes(NamedTuple):
    """Gradients; those of q and k are of each part of the values, and so is what `begin` sums."""

    q: Float[jax.Array, "B N parts T H"]
    k: Float[jax.Array, "B N parts T H"]
    v: Float[jax.Array, "B N T K"]
    state: Float[jax.Array, "B N H K"]  # before the first chunk
    begin: Float[jax.Array, "B N parts T/C H"]  # of the state before each chunk and its gradient, the sum over values


def backward(
    how: How,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    told: Told,
    states: jax.Array,
    do: jax.Array,
    dlast: Float[jax.Array, "B N H K"],
) -> Slopes:
    """Gradients, chunks from the last to the first."""
    kernel = _Kernel(how, q, v, told, backwards=True)
    size, width = kernel.size, kernel.width

    def start(here: Visit) -> Carry:
        return {"state": whole_matrix(here.refs["dlast"].at[here.batch, here.head, :, kernel.of_part(here)])}

    def step(here: Visit, carry: Carry) -> Carry:
        refs, state = here.refs, carry["state"]
        plgpu.commit_smem()  # as forwards
        refs["dstate"][...] = state.astype(q.dtype)
        far = kernel.scaled(here, "far", "do", "since")
        scores = matmul(refs["q"], flipped(refs["k"]), (STRIP, STRIP))
        dscores = matmul(refs["do"], flipped(refs["v"]), (STRIP, STRIP))
        weights, dscores = kernel.weights(here, scores, dscores)
        refs["weights"][...] = weights.astype(q.dtype)
        refs["dscores"][...] = dscores.astype(q.dtype)
        plgpu.commit_smem()
        at = kernel.of_chunk(here)
        dq = kernel.times(here, matmul(refs["do"], flipped(refs["states"]), (STRIP, size)), "since")
        here.put("dq", dq + matmul(refs["dscores"], refs["k"], (STRIP, size)), here.part, at)
        dk = kernel.times(here, matmul(refs["v"], flipped(refs["dstate"]), (STRIP, size)), "until")
        here.put("dk", dk + matmul(flipped(refs["dscores"]), refs["q"], (STRIP, size)), here.part, at)
        dv = kernel.times(here, matmul(refs["k"], refs["dstate"], (STRIP, width)), "until")
        dv += matmul(flipped(refs["weights"]), refs["do"], (STRIP, width))
        here.put("dv", dv, at, kernel.of_part(here))
        state = kernel.kept(here, state) + matmul(flipped(refs["q"]), far, (size, width))
        overlap = jnp.sum(refs["states"][...].astype(jnp.float32) * state, axis=1)
        here.put("begin", overlap, here.part, here.chunk)
        return {"state": state}

    def finish(here: Visit, carry: Carry) -> None:
        here.put("dfirst", carry["state"], slice(None), kernel.of_part(here))

    batch, heads, length, values = v.shape
    parts = (batch, heads, kernel.chunks.parts)
    outputs = {
        "dq": jax.ShapeDtypeStruct((*parts, length, size), jnp.float32),
        "dk": jax.ShapeDtypeStruct((*parts, length, size), jnp.float32),
        "dv": jax.ShapeDtypeStruct(v.shape, v.dtype),
        "dfirst": jax.ShapeDtypeStruct(dlast.shape, jnp.float32),
        "begin": jax.ShapeDtypeStruct((*parts, kernel.count, size), jnp.float32),
    }
    moving = {"q": kernel.rows(q), "k": kernel.rows(k), "v": kernel.values(v), "do": kernel.values(do)}
    moving["states"] = Moving(states, (size, width), parted=True)
    moving |= kernel.vectors
    square = (STRIP, STRIP)
    shared = {"dstate": (size, width), "weights": square, "dscores": square}
    if "since" in kernel.names:
        shared["far"] = (STRIP, width)
    whole = {"dlast": dlast, **kernel.scalars}
    found = kernel.chunks.run("recurrence_backward", moving, whole, outputs, shared, start, step, finish)
    return Slopes(*(found[name] for name in ("dq", "dk", "dv", "dfirst", "begin")))
