"""Which keys the rows of `xla_chunked` are computed against, where the mask is known before the call.

Rows are taken in a few spans, each with a loop of its own, against the keys between the first and the last that the
span sees; or, where each chunk of rows sees few keys, in one band, against as many from the first that it sees on.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int
from positionbias.kernels.differences import by_difference
from positionbias.kernels.softmax_attention.block_map import classes, known
from positionbias.kernels.softmax_attention.problem import Problem
from positionbias.kernels.softmax_attention.xla import Keys, operands_of
from positionbias.masks.base import EMPTY

NARROW = 32  # keys by which a band is measured
SPANS = 4  # each is a loop of its own to compile; of a causal mask they leave out 3 / 8, and more could only 1 / 2


class Arrays(NamedTuple):
    """What a span reads: its rows, the keys they see, and operands cut likewise, but for those by difference."""

    q: Float[jax.Array, "B T N H"]
    k: Float[jax.Array, "B S G H"]
    v: Float[jax.Array, "B S G K"]
    allowed: tuple[Any, ...]
    score: tuple[Any, ...]
    seed: Any


class Span(NamedTuple):
    """Rows `begin` to `end` - 1, and the keys between the first and the last that one of them sees.

    In a band those of all, and of each chunk of rows `near` from the first key that it sees on.
    """

    begin: int
    end: int
    keys: Keys
    firsts: Int[np.ndarray, "chunks"] | None = None
    near: int = 0

    def rows(self, x: Any, axis: int) -> Any:
        """Those of an array; all of one that has a single one for all rows, None for None."""
        if x is None or x.shape[axis] == 1:
            return x
        return jax.lax.slice_in_dim(jnp.asarray(x), self.begin, self.end, axis=axis)

    def of(self, arrays: Arrays) -> Arrays:
        """What the span reads."""
        cut = [tuple(self.part(x) for x in group) for group in (arrays.allowed, arrays.score)]
        q = jax.lax.slice_in_dim(arrays.q, self.begin, self.end, axis=1)
        return Arrays(q, self.keys.of(arrays.k, 1), self.keys.of(arrays.v, 1), cut[0], cut[1], arrays.seed)

    def part(self, x: Any) -> Any:
        """The part of an operand that it reads."""
        return x if by_difference(x) else self.rows(self.keys.of(x, 3), 2)

    def place(self, x: Any) -> tuple[slice, ...]:
        """Where an operand's part lies in the whole of it."""
        if by_difference(x):
            return (slice(None),) * 3
        rows = slice(self.begin, self.end) if x.shape[2] > 1 else slice(None)
        keys = slice(self.keys.first, self.keys.first + self.keys.count) if x.shape[3] > 1 else slice(None)
        return (slice(None), slice(None), rows, keys)

    def seen(self, arrays: Arrays, first: Any) -> tuple[Arrays, Keys]:
        """What a chunk reads of what the span does, and its keys; `first` is None but in a band."""
        if first is None:
            return arrays, self.keys
        keys = Keys(first, self.near)
        cut = [tuple(x if by_difference(x) else keys.of(x, 3) for x in group) for group in arrays[3:5]]
        return arrays._replace(k=keys.of(arrays.k, 1), v=keys.of(arrays.v, 1), allowed=cut[0], score=cut[1]), keys


def spans_of(problem: Problem, size: int) -> list[Span]:
    """A few spans of whole chunks of `size` rows, those that see the same keys joined."""
    _, t, s, _, _ = problem.sizes
    count = -(-t // size)
    rule = problem.allowed
    if rule is None or not known(rule):
        return [Span(0, t, Keys(0, s))]
    height, width = problem.block_sizes
    visible = (np.asarray(classes(problem, problem.block_sizes)) != EMPTY).any(axis=(0, 1))
    ends = sorted({round(count * part / SPANS) * size for part in range(SPANS + 1)})
    found: list[Span] = []
    for start, stop in itertools.pairwise(ends):
        columns = np.flatnonzero(visible[start // height : -(-stop // height)].any(axis=0))
        first, last = (columns[0], columns[-1]) if columns.size else (0, 0)
        keys = Keys(int(first) * width, min(int(last + 1) * width, s) - int(first) * width)
        if found and found[-1].keys == keys:
            start = found.pop().begin
        found.append(Span(start, min(stop, t), keys))
    return found


def band(problem: Problem, size: int, pairs: int) -> Span | None:
    """All rows as a band of chunks of `size`, where that leaves out a quarter of so many pairs.

    None elsewhere, for masks not known before, for operands with a number a pair, and where the mass of tiles is asked.
    """
    rule, (_, t, s, _, _) = problem.allowed, problem.sizes
    paired = any(not by_difference(x) and min(x.shape[2:]) > 1 for group in operands_of(problem) for x in group)
    if rule is None or paired or not known(rule) or "block_mass" in problem.stats:
        return None
    near, first = s, np.zeros(0, np.int32)
    for step in (problem.block_sizes[1], min(NARROW, problem.block_sizes[1])):  # the tiles of spans are known
        visible = (np.asarray(classes(problem, (size, step))) != EMPTY).any(axis=(0, 1))
        first, behind = (step * np.argmax(x, axis=1) for x in (visible, visible[:, ::-1]))
        stop = np.where(visible.any(axis=1), step * visible.shape[1] - behind, first)
        near = min(int((stop - first).max()), s)
        if near == 0 or 4 * near * t > 3 * pairs:
            return None
    return Span(0, t, Keys(0, s), np.minimum(first, s - near).astype(np.int32), near)
