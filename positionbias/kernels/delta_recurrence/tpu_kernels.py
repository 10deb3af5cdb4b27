"""The kernels for TPU, forwards and backwards: the algebra of a chunk in vector memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from positionbias.arrays import Float
from positionbias.kernels.softmax_attention.tpu_grid import shaped
from positionbias.kernels.tpu_chunks import Blocks, Refs, by_chunks

States = tuple[Float[jax.Array, "B N H K"], ...]


class How(NamedTuple):
    """What is known before the program runs."""

    advance: Callable[..., Any]  # see `problem.Problem`
    steps: int  # of a chunk
    interpret: Any


class Arrays(NamedTuple):
    """By heads, in whole chunks."""

    q: Float[jax.Array, "B N T H"]
    k: Float[jax.Array, "B N T H"]
    v: Float[jax.Array, "B N T K"]
    gates: Float[jax.Array, "B N T gates"]


def forward(how: How, arrays: Arrays, states: States, keep: bool) -> tuple[jax.Array, States, tuple[jax.Array, ...]]:
    """Outputs, the last states, and those before each chunk [B, N, T / C, H, K] if they are to be kept."""
    count = arrays.q.shape[2] // how.steps
    numbers = range(len(states))

    def body(refs: Refs, at: Any) -> None:
        @pl.when(at == 0)
        def _() -> None:
            for i in numbers:
                refs[f"sum_{i}"][...] = refs[f"state_{i}"][...]

        before = _read(refs, "sum", numbers)
        if keep:
            _write(refs, "states", before)
        o, after = how.advance(*_chunk(refs), *before)
        refs["o"][...] = o.astype(refs["o"].dtype)
        _write(refs, "sum", after)

        @pl.when(at == count - 1)
        def _() -> None:
            _write(refs, "last", after)

    batch, heads, *matrix = states[0].shape
    before = [shaped(batch, heads, count, *matrix)] * (len(states) if keep else 0)
    read = Blocks(arrays._asdict(), {}, _named("state", states))
    write = Blocks({"o": _like(arrays.v)}, _named("states", before), _named("last", [_like(x) for x in states]))
    sums = _named("sum", [x.shape[2:] for x in states])
    found = by_chunks(how.steps, read, write, sums, body, lambda at: at, how.interpret)
    return found["o"], _read(found, "last", numbers), _read(found, "states", range(len(before)))


def backward(
    how: How, arrays: Arrays, states: tuple[jax.Array, ...], do: jax.Array, dlast: States
) -> tuple[Arrays, States]:
    """Gradients of the arrays and of the first states, chunks from the last to the first, each made again."""
    last = arrays.q.shape[2] // how.steps - 1
    numbers = range(len(states))

    def body(refs: Refs, at: Any) -> None:
        @pl.when(at == 0)
        def _() -> None:
            for i in numbers:
                refs[f"sum_{i}"][...] = refs[f"dlast_{i}"][...]

        _, back = jax.vjp(how.advance, *_chunk(refs), *_read(refs, "states", numbers))
        parts = back((refs["do"][...].astype(jnp.float32), _read(refs, "sum", numbers)))
        for name, x in zip(Arrays._fields, parts, strict=False):
            refs[f"d{name}"][...] = x.astype(refs[f"d{name}"].dtype)
        first = parts[len(Arrays._fields) :]
        _write(refs, "sum", first)

        @pl.when(at == last)
        def _() -> None:
            _write(refs, "dfirst", first)

    read = Blocks(arrays._asdict() | {"do": do}, _named("states", states), _named("dlast", dlast))
    outputs = {f"d{name}": _like(x) for name, x in arrays._asdict().items()}
    write = Blocks(outputs, {}, _named("dfirst", [_like(x) for x in dlast]))
    sums = _named("sum", [x.shape[2:] for x in dlast])
    found = by_chunks(how.steps, read, write, sums, body, lambda at: last - at, how.interpret)
    return Arrays(*(found[f"d{name}"] for name in Arrays._fields)), _read(found, "dfirst", numbers)


def _chunk(refs: Refs) -> list[jax.Array]:
    return [refs[name][...].astype(jnp.float32) for name in Arrays._fields]


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return shaped(*x.shape, dtype=x.dtype)


def _named(name: str, each: Sequence[Any]) -> dict[str, Any]:
    return {f"{name}_{i}": x for i, x in enumerate(each)}


def _read(refs: Any, name: str, numbers: Sequence[int]) -> tuple[jax.Array, ...]:
    return tuple(refs[f"{name}_{i}"][...] for i in numbers)


def _write(refs: Refs, name: str, each: Sequence[jax.Array]) -> None:
    for i, x in enumerate(each):
        refs[f"{name}_{i}"][...] = x
