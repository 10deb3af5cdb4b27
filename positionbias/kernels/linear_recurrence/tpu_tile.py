"""The recurrence of one chunk in vector memory, by products of whole matrices: what `chunk` does in halves of blocks.

Sums of logarithms of decays are products with matrices of 0 and 1, each of the very steps that lie between, so that
they are as precise as any. Pairs of a query and an earlier key are told apart by masks: with one decay a head, all
pairs are one part; with decays by channel, part n has the pairs between the halves of each block of 2 n steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.linear_recurrence.decays import kept, times
from positionbias.kernels.softmax_attention.tpu_grid import COLUMNS, PLAIN, ROWS, dot

LEAST = -128.0  # the logarithm of a decay that 32 bits tell from 0 is more, and 0 times -infinity is no number


class Side(NamedTuple):
    """Products of decays, of keys or of values; None for 1."""

    since: jax.Array | None  # [C, X], from a beginning to the query
    until: jax.Array | None  # [C, X], from after the key to an end


class Runs(NamedTuple):
    """Steps between which the state is not cleared, as factors 1, and 0 for all others."""

    same: Float[jax.Array, "C C"]
    first: Float[jax.Array, "C 1"]  # with the beginning of the chunk
    last: Float[jax.Array, "C 1"]  # with its end


class Part(NamedTuple):
    """Some pairs: their weights are `pairs` times the scores of scaled queries and keys."""

    pairs: Float[jax.Array, "C C"]
    keys: Side
    values: Side


class Tile(NamedTuple):
    """The arrays of a chunk in 32 bits, and products of its decays."""

    q: Float[jax.Array, "C H"]
    k: Float[jax.Array, "C H"]
    v: Float[jax.Array, "C K"]
    keys: Side  # of the whole chunk
    values: Side
    total: jax.Array | None  # [H, 1] or [1, 1], the logarithm of that of keys over the whole chunk; None for 0
    value_total: Float[jax.Array, "1 K"] | None
    parts: tuple[Part, ...]
    runs: Runs | None  # None if nothing is cleared
    inclusive: bool


def made(q: Any, k: Any, v: Any, log_decay: Any, value_log_decay: Any, resets: Any, inclusive: bool) -> Tile:
    """The tile of a chunk; `log_decay` [C, 1] or [C, H], `resets` [C, 1]."""
    steps = q.shape[0]
    log_decay, value_log_decay = (None if x is None else jnp.maximum(x, LEAST) for x in (log_decay, value_log_decay))
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (steps, steps), axis) for axis in (0, 1))
    past = row >= column if inclusive else row > column
    whole = _side(log_decay, past, column > row), _side(value_log_decay, past, column > row)
    by_channel = value_log_decay is not None or (log_decay is not None and log_decay.shape[1] > 1)
    parts = []
    if by_channel:
        n = 1
        while n < steps:
            near = row // n == column // n
            pairs = (row // n == column // n + 1) & (row // n % 2 == 1)
            sides = (_side(x, past & near, (column > row) & near) for x in (log_decay, value_log_decay))
            parts.append(Part(pairs.astype(jnp.float32), *sides))
            n *= 2
    else:
        pairs = (row > column).astype(jnp.float32)
        if log_decay is not None:
            pairs = jnp.where(row > column, jnp.exp(_sums(past, log_decay * (row > column))), 0.0)
        parts.append(Part(pairs, Side(None, None), Side(None, None)))
    total = None
    if log_decay is not None and log_decay.shape[1] > 1:
        ones = jnp.ones((steps, 1), jnp.float32)
        total = jax.lax.dot_general(log_decay, ones, COLUMNS, jax.lax.Precision.HIGHEST)
    elif log_decay is not None:
        total = jnp.sum(log_decay, axis=0, keepdims=True)
    value_total = None if value_log_decay is None else jnp.sum(value_log_decay, axis=0, keepdims=True)
    runs = None
    if resets is not None:
        runs = _runs(resets, row, column)
        parts = [part._replace(pairs=part.pairs * runs.same) for part in parts]
        keys = whole[0]
        whole = Side(times(runs.first, keys.since), times(runs.last, keys.until)), whole[1]
    return Tile(q, k, v, *whole, total, value_total, tuple(parts), runs, inclusive)


def _runs(resets: jax.Array, row: jax.Array, column: jax.Array) -> Runs:
    """By how often the state was cleared until each step, as a column and as a row."""
    cleared = _sums(row >= column, resets)
    beside = jax.lax.dot_general(resets, (row <= column).astype(jnp.float32), COLUMNS, jax.lax.Precision.HIGHEST)
    ends = (cleared == 0, cleared == cleared[-1:])
    return Runs((cleared == beside).astype(jnp.float32), *(x.astype(jnp.float32) for x in ends))


def _side(log_decay: jax.Array | None, past: jax.Array, ahead: jax.Array) -> Side:
    """Products over the steps that two [C, C] masks choose for each."""
    if log_decay is None:
        return Side(None, None)
    return Side(jnp.exp(_sums(past, log_decay)), jnp.exp(_sums(ahead, log_decay)))


def _sums(chosen: jax.Array, x: jax.Array) -> jax.Array:
    """For each row, the sum of the steps that it chooses, in 32 bits however jax is configured."""
    return jax.lax.dot_general(
        chosen.astype(jnp.float32), x, PLAIN, jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def of_earlier(tile: Tile, state: Float[jax.Array, "H K"]) -> Float[jax.Array, "C K"]:
    """Outputs but for what each step itself writes."""
    o = times(dot(times(tile.q, tile.keys.since), state, PLAIN), tile.values.since)
    for pairs, keys, values in tile.parts:
        weights = dot(times(tile.q, keys.since), times(tile.k, keys.until), ROWS) * pairs
        o = o + times(dot(weights, times(tile.v, values.until), PLAIN), values.since)
    return o


def forward(tile: Tile, state: Float[jax.Array, "H K"]) -> tuple[Float[jax.Array, "C K"], Float[jax.Array, "H K"]]:
    """Outputs and the state after the chunk."""
    o = of_earlier(tile, state)
    if tile.inclusive:
        o = o + _dot(tile.q, tile.k) * tile.v
    written = dot(times(tile.k, tile.keys.until), times(tile.v, tile.values.until), COLUMNS)
    return o, _kept(tile, state) + written


def backward(
    tile: Tile, state: Float[jax.Array, "H K"], do: Float[jax.Array, "C K"], dstate: Float[jax.Array, "H K"]
) -> tuple[jax.Array, ...]:
    """Gradients of q, k, v, and of the state before the chunk, with what each step reads of its own key left out."""
    far = times(do, tile.values.since)
    dq = times(dot(far, state, ROWS), tile.keys.since)
    dk = times(dot(times(tile.v, tile.values.until), dstate, ROWS), tile.keys.until)
    dv = times(dot(times(tile.k, tile.keys.until), dstate, PLAIN), tile.values.until)
    for pairs, keys, values in tile.parts:
        q, k = times(tile.q, keys.since), times(tile.k, keys.until)
        v, near = times(tile.v, values.until), times(do, values.since)
        weights, dscores = dot(q, k, ROWS) * pairs, dot(near, v, ROWS) * pairs
        dq = dq + times(dot(dscores, k, PLAIN), keys.since)
        dk = dk + times(dot(dscores, q, COLUMNS), keys.until)
        dv = dv + times(dot(weights, near, COLUMNS), values.until)
    return dq, dk, dv, _kept(tile, dstate) + dot(times(tile.q, tile.keys.since), far, COLUMNS)


def own(tile: Tile, do: Float[jax.Array, "C K"]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k, v by what each step reads of its own key."""
    dscore = _dot(do, tile.v)
    return dscore * tile.k, dscore * tile.q, _dot(tile.q, tile.k) * do


def of_decay(tile: Tile, begin: jax.Array, read: jax.Array, written: jax.Array) -> jax.Array:
    """The gradient of logarithms of decays [C, X], see `chunk.backward`; `begin` is [1, X]."""
    steps = read.shape[0]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (steps, steps), axis) for axis in (0, 1))
    earlier = (row > column).astype(jnp.float32)
    if tile.runs is not None:
        earlier, begin = earlier * tile.runs.same, begin * tile.runs.first
    found = begin + _sums(earlier, written - read)
    return found if tile.inclusive else found - read


def row_sums(x: Float[jax.Array, "H K"]) -> Float[jax.Array, "1 H"]:
    """The sum of each row, side by side."""
    return jax.lax.dot_general(jnp.ones((1, x.shape[1]), x.dtype), x, ROWS, jax.lax.Precision.HIGHEST)


def _kept(tile: Tile, state: jax.Array) -> jax.Array:
    found = kept(kept(state, tile.total), tile.value_total)
    return found if tile.runs is None else found * tile.runs.first[-1:]


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(x * y, axis=1, keepdims=True)
