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
from positionbias.kernels.gpu_chunks import Carry, Chunks, Moving, States, Visit, cut, steps, whole_matrix

WIDEST = 64  # values of a part, whose sums fit into registers
DECAYING = 32  # and of one beside keys of more than a strip, with decays: compiled for sm_90a, more spill


class How(NamedTuple):
    """What is known before the program runs."""

    inclusive: bool
    dtype: Any  # of outputs
    interpret: Any


class Told(NamedTuple):
    """What decays and resets say of each step of a chunk of `STRIP`, and of each chunk; None where they say nothing."""

    since: Float[jax.Array, "B N T"] | None = None  # product from the beginning of the chunk to the query
    until: Float[jax.Array, "B N T"] | None = None  # product from after the key to the end of the chunk
    sums: Float[jax.Array, "B N T"] | None = None  # of logarithms since the chunk began, to the step and its own
    reads: Float[jax.Array, "B N T"] | None = None  # that sum as a query meets it
    runs: Float[jax.Array, "B N T"] | None = None  # how often the state was cleared until the step
    keep: Float[jax.Array, "B N chunks"] | None = None  # a state S is S keep + S lost after a chunk
    lost: Float[jax.Array, "B N chunks"] | None = None


VECTORS = ("since", "until", "sums", "reads", "runs")


class _Kernel:
    """The sizes of a kernel, and what decays do in it."""

    def __init__(self, how: How, q: jax.Array, v: jax.Array, told: Told, backwards: bool) -> None:
        batch, heads, length, self.size = q.shape
        self.width, parts = part_of(v.shape[3], self.size, told.since is not None)
        self.states = States(self.size, self.width)
        self.how, self.count = how, length // STRIP
        self.chunks = Chunks(batch, heads, parts, self.count, backwards, how.interpret)
        vectors = {name: x for name in VECTORS if (x := getattr(told, name)) is not None}
        if told.runs is not None:  # for keys, as the compiler finds no layouts for what goes along both sides
            vectors["key_runs"] = told.runs
        self.names = list(vectors)
        self.vectors: dict[str, Moving] = {}
        if self.names:
            pack = jnp.stack(list(vectors.values()), axis=2)
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
        return x * self.vector(here, name, 0, x.shape[1]) if name in self.names else x

    def of_both(self, here: Visit, name: str, far: tuple[Any, Any], near: tuple[Any, Any]) -> jax.Array:
        """The product of `far`, each row by a number of its step, and that of `near`: [C, K]."""
        shape = (STRIP, self.width)
        if name not in self.names:
            return matmul(*far, shape, near)
        return self.times(here, matmul(*far, shape), name) + matmul(*near, shape)

    def vector(self, here: Visit, name: str, axis: int, width: int) -> jax.Array:
        """A number of each step, in every column of a matrix for axis 0, or in every row for 1."""
        return here.vector(self.names.index(name), axis, width)

    def scaled(self, here: Visit, into: str, of: str, name: str) -> Any:
        """The block `of`, each row by a number of its step, in shared memory, where the next commit shows it."""
        if name not in self.names:
            return here.refs[of]
        x = whole_matrix(here.refs[of])
        here.refs[into][...] = self.times(here, x.astype(jnp.float32), name).astype(x.dtype)
        return here.refs[into]

    def stepped(self, here: Visit, carry: Carry, name: str, right: Any) -> Carry:
        """What a chunk leaves of a state, and the product of its queries or keys, each as a column, with `right`."""
        found = {}
        for at, state in carry.items():
            left = flipped(here.refs[name].at[:, cut(at)])
            found[at] = self.states.kept(here, state) + matmul(left, right, (STRIP, self.width))
        return found

    def weighed(self, here: Visit, into: str, x: Any, y: Any) -> None:
        """To shared memory, products of queries and keys by the decays between the two; 0 where a key is not seen.

        The decays are made anew each time: beside a state, the registers do not hold them and another product.
        """
        shape = (STRIP, STRIP)
        row, column = (plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1))
        seen = row >= column if self.how.inclusive else row > column
        if "runs" in self.names:
            seen &= self.vector(here, "runs", 0, STRIP) == self.vector(here, "key_runs", 1, STRIP)
        found = matmul(x, flipped(y), shape)
        if "sums" in self.names:
            between = self.vector(here, "reads", 0, STRIP) - self.vector(here, "sums", 1, STRIP)
            found *= jnp.exp(jnp.minimum(between, 0.0))
        here.refs[into][...] = jnp.where(seen, found, 0.0).astype(here.refs[into].dtype)


def part_of(values: int, keys: int, decays: bool) -> tuple[int, int]:
    """How many values a part has, a multiple of 16, and how many parts there are.

    Beside keys of more than a strip it is a power of two: with other widths, all matrices lie in short tiles, of which
    the registers have to hold more addresses.
    """
    most = DECAYING if decays and keys > STRIP else WIDEST
    parts = -(-values // most)
    return (most if keys > STRIP else -(-values // (16 * parts)) * 16), parts


def forward(
    how: How, q: jax.Array, k: jax.Array, v: jax.Array, told: Told, state: Float[jax.Array, "B N H K"], keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Outputs, the last state, and the states before each chunk [B, N, T / C H, K] if they are to be kept."""
    kernel = _Kernel(how, q, v, told, backwards=False)
    size, width = kernel.size, kernel.width

    def start(here: Visit) -> Carry:
        return kernel.states.begun(here, "first")

    def step(here: Visit, carry: Carry) -> Carry:
        refs = here.refs
        plgpu.commit_smem()  # all threads are done with the chunk before, whose matrices are written over
        for at, state in carry.items():
            rounded = state.astype(q.dtype)
            refs["state"].at[cut(at), :][...] = rounded
            if keep:
                here.put("states", rounded, pl.ds(here.chunk * size + int(at), STRIP), kernel.states.part(here))
        written = kernel.scaled(here, "written", "v", "until")
        kernel.weighed(here, "weights", refs["q"], refs["k"])
        plgpu.commit_smem()
        o = kernel.of_both(here, "since", (refs["q"], refs["state"]), (refs["weights"], refs["v"]))
        here.put("o", o, steps(here), kernel.states.part(here))
        return kernel.stepped(here, carry, "k", written)

    def finish(here: Visit, carry: Carry) -> None:
        kernel.states.ended(here, "last", carry)

    batch, heads, _, values = v.shape
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
    begin: Float[jax.Array, "B N parts T/C H"] | None  # sums over values of a state before a chunk and its gradient


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
        return kernel.states.begun(here, "dlast")

    def step(here: Visit, carry: Carry) -> Carry:
        refs = here.refs
        plgpu.commit_smem()  # as forwards
        for at, state in carry.items():
            refs["dstate"].at[cut(at), :][...] = state.astype(q.dtype)
        far, written = kernel.scaled(here, "far", "do", "since"), kernel.scaled(here, "written", "v", "until")
        kernel.weighed(here, "weights", refs["q"], refs["k"])
        kernel.weighed(here, "dscores", refs["do"], refs["v"])
        plgpu.commit_smem()
        square = (STRIP, STRIP)
        for at in carry:
            states, dstate = (flipped(refs[name].at[cut(at), :]) for name in ("states", "dstate"))
            dq = matmul(far, states, square, (refs["dscores"], refs["k"].at[:, cut(at)]))
            here.put("dq", dq, here.part, steps(here), cut(at))
            dk = matmul(written, dstate, square, (flipped(refs["dscores"]), refs["q"].at[:, cut(at)]))
            here.put("dk", dk, here.part, steps(here), cut(at))
        near = flipped(refs["weights"]), refs["do"]
        here.put(
            "dv",
            kernel.of_both(here, "until", (refs["k"], refs["dstate"]), near),
            steps(here),
            kernel.states.part(here),
        )
        carry = kernel.stepped(here, carry, "q", far)
        for at, state in carry.items() if "begin" in outputs else ():
            before = whole_matrix(refs["states"].at[cut(at), :]).astype(jnp.float32)
            here.put("begin", jnp.sum(before * state, axis=1), here.part, here.chunk, cut(at))
        return carry

    def finish(here: Visit, carry: Carry) -> None:
        kernel.states.ended(here, "dfirst", carry)

    batch, heads, length, _ = v.shape
    parts = (batch, heads, kernel.chunks.parts)
    outputs = {
        "dq": jax.ShapeDtypeStruct((*parts, length, size), jnp.float32),
        "dk": jax.ShapeDtypeStruct((*parts, length, size), jnp.float32),
        "dv": jax.ShapeDtypeStruct(v.shape, v.dtype),
        "dfirst": jax.ShapeDtypeStruct(dlast.shape, jnp.float32),
    }
    if told.sums is not None:
        outputs["begin"] = jax.ShapeDtypeStruct((*parts, kernel.count, size), jnp.float32)
    moving = {"q": kernel.rows(q), "k": kernel.rows(k), "v": kernel.values(v), "do": kernel.values(do)}
    moving["states"] = Moving(states, (size, width), parted=True)
    moving |= kernel.vectors
    square = (STRIP, STRIP)
    shared = {"dstate": (size, width), "weights": square, "dscores": square}
    if "since" in kernel.names:
        shared |= {"far": (STRIP, width), "written": (STRIP, width)}
    whole = {"dlast": dlast, **kernel.scalars}
    found = kernel.chunks.run("recurrence_backward", moving, whole, outputs, shared, start, step, finish)
    return Slopes(*(found.get(name) for name in ("dq", "dk", "dv", "dfirst", "begin")))  # type: ignore[arg-type]
