"""Attention by XLA, a chunk of rows after another, with their scores made again backwards.

It takes any rule, any type and any platform, and memory grows as T + S, but for rules with a dense operand, which is
there for all pairs. Where the mask is known before the call, chunks are taken in a few spans of rows, and those of a
span are computed against the keys that it sees only, or in one band, of a window say, so that time grows as T
(`xla_spans`). The gradient is written by hand (see `tiles`), which takes less than that of jax, and has no forward
mode. Few scores are computed all at once, as by `xla_dense` (see `FEW`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.kernels.differences import by_difference
from positionbias.kernels.softmax_attention.fused import told
from positionbias.kernels.softmax_attention.problem import Problem, Stats
from positionbias.kernels.softmax_attention.tiles import finite, slopes, weights
from positionbias.kernels.softmax_attention.xla import (
    allowed_pairs,
    by_keys,
    dense,
    keeps,
    mixed,
    operands_of,
    products,
    rows_against,
    ruled,
    spread_out,
)
from positionbias.kernels.softmax_attention.xla_spans import Arrays, Span, band, spans_of

CHUNK = 128  # rows at a time
# Above so many keys, half as many rows, so that a tenth of the memory of all rows is enough. Where no keys are left out
# that is so up to twice the keys: from there on, larger chunks are faster, and small enough.
MANY = 1024
# Bytes of all scores below which they stay, where no keys are left out: made again backwards, they take only time.
# Of each of several such arrays, and of each replica under `vmap`, which sizes do not show.
FEW = 12 << 20


def chunked(problem: Problem) -> tuple[Float[jax.Array, "B T N K"], Stats]:
    """`CHUNK` rows at a time, or half of them; or whole tiles of rows where the mass of tiles is asked for.

    All at once where that is few, or where their scores are (`FEW`).
    """
    size, (b, t, s, n, _) = CHUNK, problem.sizes
    few = b * n * t * s * problem.score_dtype.itemsize < FEW
    if s > MANY and (s <= 2 * MANY or leaves_out(problem)):
        size = CHUNK // 2
    if "block_mass" in problem.stats:
        size = -(-size // problem.block_sizes[0]) * problem.block_sizes[0]
    if t <= size or (few and not leaves_out(problem)):
        return dense(problem)
    allowed, score = operands_of(problem)
    seed = None if problem.dropout is None else problem.dropout.seed
    arrays = Arrays(problem.q, problem.k, problem.v, allowed, score, seed)
    spans = spans_of(problem, size)
    narrow = band(problem, CHUNK, sum((span.end - span.begin) * span.keys.count for span in spans))
    size, spans = (size, spans) if narrow is None else (CHUNK, [narrow])
    return _Chunks(problem, size, tuple(spans)).run(arrays)


def leaves_out(problem: Problem) -> bool:
    """Whether some rows are computed against fewer keys than others."""
    return len(spans_of(problem, CHUNK)) > 1


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """Spans of rows, `size` rows at a time; of `problem` the arrays are not read, but its sizes and rules."""

    problem: Problem
    size: int
    spans: tuple[Span, ...]

    def run(self, arrays: Arrays) -> tuple[Float[jax.Array, "B T N K"], Stats]:
        """Outputs and statistics."""

        @jax.custom_vjp
        def attend(arrays: Arrays) -> tuple[jax.Array, Stats]:
            return self._forward(arrays)

        def forward(given: Any) -> tuple[tuple[jax.Array, Stats], Any]:
            arrays = jax.tree.map(lambda x: x.value, given, is_leaf=lambda x: hasattr(x, "perturbed"))
            o, stats = self._forward(arrays)
            return (o, stats), (arrays, stats.lse, o)

        def backward(kept: Any, given: Any) -> tuple[Arrays]:
            return (self._backward(*kept, *given),)

        attend.defvjp(forward, backward, symbolic_zeros=True)
        o, stats = attend(arrays)
        return o, stats if "lse" in self.problem.stats else stats._replace(lse=None)

    def _forward(self, arrays: Arrays) -> tuple[jax.Array, Stats]:
        """Outputs and statistics, the log-sum-exp in any case."""
        parts = [self._span_forward(span.of(arrays), span) for span in self.spans]

        def joined(name: str) -> Any:
            found = [getattr(stats, name) for _, stats in parts]
            return None if found[0] is None else jnp.concatenate(found, axis=2)

        def spread(name: str, unit: int) -> list[jax.Array]:
            """Of each span, with zeros for the keys that are left out."""
            found = []
            for (_, stats), span in zip(parts, self.spans, strict=True):
                x, before = getattr(stats, name), span.keys.first // unit
                behind = -(-arrays.k.shape[1] // unit) - before - x.shape[-1]
                found.append(jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, behind)]))
            return found

        received, mass = None, None
        if "received" in self.problem.stats:
            received = functools.reduce(jnp.add, spread("received", 1))
        if "block_mass" in self.problem.stats:
            mass = jnp.concatenate(spread("block_mass", self.problem.block_sizes[1]), axis=2)
        stats = Stats(joined("lse"), received, joined("entropy"), joined("mean_position"), mass)
        return jnp.concatenate([o for o, _ in parts], axis=1), stats

    def _backward(self, arrays: Arrays, lse: jax.Array | None, o: jax.Array, given_o: Any, given: Stats) -> Arrays:
        do, by, kind = told(given_o), Stats(*(told(x) for x in given)), self.problem.score_dtype
        if do is None:
            do = jnp.zeros(o.shape, o.dtype)
        offset = self._offset(o, do, by)
        dk, dv, dq = jnp.zeros(arrays.k.shape, kind), jnp.zeros(arrays.v.shape, kind), []
        score = [jnp.zeros(x.shape, kind) if jnp.issubdtype(x.dtype, jnp.floating) else None for x in arrays.score]
        for span in self.spans:
            # A span waits for the one before, so that only one has its copies at a time, and none those made forwards.
            arrays, dk, dv = jax.lax.optimization_barrier((arrays, dk, dv))
            part = span.of(arrays)
            do_part = jax.lax.slice_in_dim(do, span.begin, span.end, axis=1)
            carried = span.rows(lse, 2), span.rows(offset, 2)
            changes = self._span_backward(part, (dk, dv), carried, do_part, self._cut(by, span), span)
            dq.append(changes.q)
            dk, dv = changes.k, changes.v
            for i, (total, change) in enumerate(zip(score, changes.score, strict=True)):
                score[i] = None if total is None else total.at[span.place(total)].add(change)
        return Arrays(
            q=jnp.concatenate(dq, axis=1),
            k=dk.astype(arrays.k.dtype),
            v=dv.astype(arrays.v.dtype),
            allowed=(None,) * len(arrays.allowed),
            score=tuple(None if x is None else x.astype(y.dtype) for x, y in zip(score, arrays.score, strict=True)),
            seed=None,
        )

    def _offset(self, o: jax.Array, do: jax.Array, by: Stats) -> Float[jax.Array, "B N T"] | None:
        """D of `tiles`, where the outputs tell it as precisely as scores are; None where it is summed over keys."""
        others = by.received, by.block_mass, by.entropy, by.mean_position
        if not self.problem.normalise or o.dtype != self.problem.score_dtype or any(x is not None for x in others):
            return None
        offset = jnp.einsum("BTNK,BTNK->BNT", do, o)
        return offset if by.lse is None else offset - by.lse

    def _cut(self, by: Stats, span: Span) -> Stats:
        """What cotangents of statistics say of a span."""
        first, (height, width) = span.keys.first, self.problem.block_sizes
        stop = first + span.keys.count
        mass = by.block_mass
        if mass is not None:
            mass = mass[:, :, span.begin // height : -(-span.end // height), first // width : -(-stop // width)]
        return Stats(
            lse=span.rows(by.lse, 2),
            received=None if by.received is None else by.received[..., first:stop],
            entropy=span.rows(by.entropy, 2),
            mean_position=span.rows(by.mean_position, 2),
            block_mass=mass,
        )

    def _parts(self, x: Any, axis: int, size: int | None = None) -> Any:
        """An array in chunks, which come first; None for None."""
        if x is None:
            return None
        size = size or self.size
        count = -(-x.shape[axis] // size)
        # Rows that pad repeat the last: a rule need not be finite at 0.
        more = [(0, count * size - x.shape[axis]) if a == axis else (0, 0) for a in range(x.ndim)]
        x = jnp.pad(x, more, mode="edge")
        shape = x.shape
        return jnp.moveaxis(x.reshape(*shape[:axis], count, size, *shape[axis + 1 :]), axis, 0)

    def _joined(self, x: Any, axis: int, most: int) -> Any:
        """What chunks have, in their order."""
        if x is None:
            return None
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, most, axis=axis)

    def _moving(self, operands: tuple[Any, ...]) -> list[Any]:
        """Of operands, the chunks of those that go along rows; None for others."""
        return [self._parts(jnp.asarray(x), 2) if _moves(x) else None for x in operands]

    def _starts(self, span: Span) -> jax.Array:
        return jnp.arange(span.begin, span.end, self.size, dtype=jnp.int32)

    def _ragged(self, span: Span) -> bool:
        return (span.end - span.begin) % self.size > 0

    def _inside(self, arrays: Arrays) -> Problem:
        """The problem with these keys, and the log-sum-exp among its statistics."""
        problem = self.problem
        dropout = None if problem.dropout is None else problem.dropout._replace(seed=arrays.seed)
        stats = (*problem.stats, "lse") if problem.normalise else problem.stats
        return dataclasses.replace(problem, k=arrays.k, v=arrays.v, dropout=dropout, stats=stats)

    def _span_forward(self, arrays: Arrays, span: Span) -> tuple[jax.Array, Stats]:
        problem, length = self.problem, arrays.q.shape[1]

        def one(received: jax.Array | None, part: Any) -> tuple[jax.Array | None, Any]:
            q, allowed, score, start, first = part
            seen, keys = span.seen(arrays, first)
            operands = _with(seen.allowed, allowed), _with(seen.score, score)
            o, stats = rows_against(self._inside(seen), q, operands, start, keys, self._ragged(span))
            if received is not None and stats.received is not None:
                received = received + stats.received if first is None else keys.add(received, stats.received, 2)
            return received, (o, stats._replace(received=None))

        begin = None
        if "received" in problem.stats:
            begin = jnp.zeros((*arrays.q.shape[::2][:2], arrays.k.shape[1]), problem.score_dtype)
        moving = self._moving(arrays.allowed), self._moving(arrays.score)
        parts = (self._parts(arrays.q, 1), *moving, self._starts(span), span.firsts)
        received, (o, stats) = jax.lax.scan(one, begin, parts)
        found = Stats(
            lse=self._joined(stats.lse, 2, length),
            received=received,
            entropy=self._joined(stats.entropy, 2, length),
            mean_position=self._joined(stats.mean_position, 2, length),
            block_mass=self._joined(stats.block_mass, 2, -(-length // problem.block_sizes[0])),
        )
        return self._joined(o, 1, length), found

    def _span_backward(
        self,
        arrays: Arrays,
        before: tuple[jax.Array, jax.Array],
        carried: tuple[jax.Array | None, jax.Array | None],
        do: jax.Array,
        by: Stats,
        span: Span,
    ) -> Arrays:
        """The cotangents of what a span reads, None for what has none; of all keys and values, with those `before`.

        `carried` are log-sum-exps and offsets D of rows.
        """
        problem, length = self.problem, arrays.q.shape[1]
        real = [i for i, x in enumerate(arrays.score) if jnp.issubdtype(x.dtype, jnp.floating)]
        still = [i for i in real if not _moves(arrays.score[i])]
        moved = [i for i in real if i not in still]
        begin = *before, [jnp.zeros(arrays.score[i].shape, problem.score_dtype) for i in still]

        def one(sums: Any, part: Any) -> tuple[Any, Any]:
            q, do, lse, offset, by_lse, by_entropy, by_place, by_mass, allowed, score, start, first = part
            read, keys = span.seen(arrays, first)
            inside, operands = self._inside(read), _with(read.score, score)

            def scores_of(found: jax.Array, *changed: jax.Array) -> jax.Array:
                now = list(operands)
                for i, x in zip(real, changed, strict=True):
                    now[i] = x
                return ruled(inside, found, spread_out(inside, tuple(now), start, q.shape[1], keys))

            s, back = jax.vjp(scores_of, products(q, read.k), *(operands[i] for i in real))
            masks = spread_out(inside, _with(read.allowed, allowed), start, q.shape[1], keys)
            seen = allowed_pairs(inside, masks, start, q.shape[1], self._ragged(span))
            a = weights(s, seen, None if lse is None else lse[..., None])
            keep = keeps(inside, start, q.shape[1], keys)
            used = (a if keep is None else a * keep).astype(read.v.dtype)
            (dp,) = jax.vjp(lambda used: mixed(used, read.v), used)[1](do)
            given = None if by.received is None else by.received[:, :, None]
            given = given if given is None or first is None else keys.of(given, 3)
            if by_mass is not None:
                mass = _over_tiles(by_mass, inside.block_sizes, s.shape[2:])
                given = mass if given is None else given + mass
            place = None if by_place is None else by_place[..., None] * keys.places.astype(s.dtype)
            entropy = None if by_entropy is None else by_entropy[..., None]
            x = slopes(dp.astype(s.dtype), finite(s, seen), keep, given, place, entropy)
            ds = a * (x if offset is None else x - offset[..., None])
            if inside.normalise and offset is None:
                total = jnp.sum(a, axis=-1)  # 1, but for the rounding of the log-sum-exp, which large scores make large
                summed = jnp.sum(ds, axis=-1) / jnp.where(total > 0, total, 1.0)
                summed = summed if by_lse is None else summed - by_lse
                ds = ds - a * summed[..., None]
            pairs, *changes = back(ds)
            (dq,) = jax.vjp(lambda q: products(q, read.k), q)[1](pairs)
            dk, dv = by_keys(q, pairs, read.k.shape[2]), by_keys(do, used, read.v.shape[2])
            dk_sum, dv_sum, still_sums = sums
            ready = dict(zip(real, changes, strict=True))
            whole = [first is None or by_difference(arrays.score[i]) for i in still]
            added = [
                total + ready[i] if every else keys.add(total, ready[i], 3)
                for total, i, every in zip(still_sums, still, whole, strict=True)
            ]
            return (keys.add(dk_sum, dk, 1), keys.add(dv_sum, dv, 1), added), (dq, [ready[i] for i in moved])

        parts = (
            self._parts(arrays.q, 1),
            self._parts(do, 1),
            *(self._parts(x, 2) for x in (*carried, by.lse, by.entropy, by.mean_position)),
            self._parts(by.block_mass, 2, max(1, self.size // problem.block_sizes[0])),
            self._moving(arrays.allowed),
            self._moving(arrays.score),
            self._starts(span),
            span.firsts,
        )
        (dk, dv, still_sums), (dq, changes) = jax.lax.scan(one, begin, parts)
        score: list[Any] = [None] * len(arrays.score)
        for i, x in zip(still, still_sums, strict=True):
            score[i] = x
        for i, x in zip(moved, changes, strict=True):
            score[i] = self._joined(x, 2, length)
        return Arrays(self._joined(dq, 1, length), dk, dv, (None,) * len(arrays.allowed), tuple(score), None)


def _with(operands: tuple[Any, ...], chunks: list[Any]) -> tuple[Any, ...]:
    """Operands of a chunk of rows: its own part of those that go along rows."""
    return tuple(x if chunk is None else chunk for x, chunk in zip(operands, chunks, strict=True))


def _moves(operand: Any) -> bool:
    """Whether it is cut along rows."""
    return not by_difference(operand) and operand.shape[2] > 1


def _over_tiles(mass: jax.Array, sizes: tuple[int, int], shape: tuple[int, ...]) -> jax.Array:
    """A number a tile, [B, N, P, M], for each pair of the tiles: [B, N, *shape]."""
    spread = jnp.repeat(jnp.repeat(mass, sizes[0], axis=2), sizes[1], axis=3)
    return spread[:, :, : shape[0], : shape[1]]
