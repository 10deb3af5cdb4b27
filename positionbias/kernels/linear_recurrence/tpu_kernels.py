"""The kernels for TPU, forwards and backwards."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from positionbias.arrays import Float
from positionbias.kernels.linear_recurrence import tpu_tile
from positionbias.kernels.softmax_attention.tpu_grid import shaped
from positionbias.kernels.tpu_chunks import Blocks, Refs, by_chunks


class How(NamedTuple):
    """What is known before the program runs."""

    steps: int  # of a chunk
    inclusive: bool
    interpret: Any


class Arrays(NamedTuple):
    """By heads, and padded to whole chunks."""

    q: Float[jax.Array, "B N T H"]
    k: Float[jax.Array, "B N T H"]
    v: Float[jax.Array, "B N T K"]
    log_decay: Float[jax.Array, "B N T 1|H"] | None
    value_log_decay: Float[jax.Array, "B N T K"] | None
    resets: Float[jax.Array, "B 1 T 1"] | None  # 1 where the state is cleared before the step, else 0


def forward(
    how: How, arrays: Arrays, state: Float[jax.Array, "B N H K"], keep: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Outputs, the last state, and the states before each chunk [B, N, T / C, H, K] if they are to be kept."""
    batch, heads, length, size = arrays.q.shape
    width = arrays.v.shape[3]
    last = length // how.steps - 1
    o = shaped(batch, heads, length, width, dtype=arrays.v.dtype)
    states = {"states": shaped(batch, heads, last + 1, size, width)} if keep else {}

    def body(refs: Refs, at: Any) -> None:
        @pl.when(at == 0)
        def _() -> None:
            refs["sum"][...] = refs["state"][...]

        before = refs["sum"][...]
        if keep:
            refs["states"][...] = before
        o, after = tpu_tile.forward(_tile(refs, how.inclusive), before)
        refs["o"][...] = o.astype(refs["o"].dtype)
        refs["sum"][...] = after

        @pl.when(at == last)
        def _() -> None:
            refs["last"][...] = after

    read = Blocks(_there(arrays), {}, {"state": state})
    write = Blocks({"o": o}, states, {"last": shaped(*state.shape)})
    found = by_chunks(how.steps, read, write, {"sum": state.shape[2:]}, body, lambda at: at, how.interpret)
    return found["o"], found["last"], found.get("states")


def backward(
    how: How, arrays: Arrays, states: jax.Array, do: jax.Array, dlast: jax.Array
) -> tuple[Arrays, Float[jax.Array, "B N H K"]]:
    """Gradients of the arrays and of the first state, chunks from the last to the first."""
    last = arrays.q.shape[2] // how.steps - 1
    there = _there(arrays)

    def body(refs: Refs, at: Any) -> None:
        @pl.when(at == 0)
        def _() -> None:
            refs["sum"][...] = refs["dlast"][...]

        tile, state, do = _tile(refs, how.inclusive), refs["states"][...], refs["do"][...].astype(jnp.float32)
        dq, dk, dv, dfirst = tpu_tile.backward(tile, state, do, refs["sum"][...])
        found: dict[str, jax.Array] = {}
        overlap = state * dfirst
        if "log_decay" in there:
            read, written = tile.q * dq, tile.k * dk
            if there["log_decay"].shape[3] == 1:
                read, written = (jnp.sum(x, axis=1, keepdims=True) for x in (read, written))
                begin = jnp.sum(jnp.sum(overlap, axis=1, keepdims=True), axis=0, keepdims=True)
            else:
                begin = tpu_tile.row_sums(overlap)
            found["log_decay"] = tpu_tile.of_decay(tile, begin, read, written)
        if "value_log_decay" in there:
            begin, read = jnp.sum(overlap, axis=0, keepdims=True), do * tpu_tile.of_earlier(tile, state)
            found["value_log_decay"] = tpu_tile.of_decay(tile, begin, read, tile.v * dv)
        if how.inclusive:
            dq, dk, dv = (x + more for x, more in zip((dq, dk, dv), tpu_tile.own(tile, do), strict=True))
        for name, x in (found | {"q": dq, "k": dk, "v": dv}).items():
            refs[f"d{name}"][...] = x.astype(refs[f"d{name}"].dtype)
        refs["sum"][...] = dfirst

        @pl.when(at == last)
        def _() -> None:
            refs["dfirst"][...] = dfirst

    read = Blocks(there | {"do": do}, {"states": states}, {"dlast": dlast})
    outputs = {f"d{name}": shaped(*x.shape, dtype=x.dtype) for name, x in there.items() if name != "resets"}
    write = Blocks(outputs, {}, {"dfirst": shaped(*dlast.shape)})
    found = by_chunks(how.steps, read, write, {"sum": dlast.shape[2:]}, body, lambda at: last - at, how.interpret)
    return Arrays(*(found.get(f"d{name}") for name in Arrays._fields)), found["dfirst"]  # type: ignore[arg-type]


def _there(arrays: Arrays) -> dict[str, jax.Array]:
    return {name: x for name, x in arrays._asdict().items() if x is not None}


def _tile(refs: Refs, inclusive: bool) -> tpu_tile.Tile:
    q, k, v, log_decay, value_log_decay, resets = (
        refs[name][...].astype(jnp.float32) if name in refs else None for name in Arrays._fields
    )
    return tpu_tile.made(q, k, v, log_decay, value_log_decay, resets, inclusive)
