"""Which tiles a kernel visits, as lists that it can read on the chip.

Tiles are EMPTY, PARTIAL or FULL (`masks.base`): empty ones are skipped, and in full ones no rule of a mask is run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Int, Mapped
from positionbias.kernels.differences import by_difference
from positionbias.kernels.rules import Rule
from positionbias.kernels.softmax_attention.problem import Problem
from positionbias.masks.base import EMPTY, FULL, PARTIAL

MOST_ENTRIES = 1 << 17  # entries of the lists, 512 KiB: what goes into the scalar memory of every TPU
MOST_KNOWN = 64
_KNOWN: dict[str, np.ndarray] = {}  # maps that were worked out, the oldest first, by what the rule computes


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """For every row of tiles the columns to visit, or for every column the rows.

    `count` [b, n, P] says how many, `entries` [b, n, P, W] which: twice the index, plus one where the tile is full. The
    entries beyond the count repeat the last, so that no copy is made for them. b is B or 1, n is N or 1.
    """

    count: Int[Mapped, "b n P"]
    entries: Int[Mapped, "b n P W"]
    any_full: bool  # whether an entry may be full
    any_partial: bool

    @property
    def width(self) -> int:
        """W."""
        return int(self.entries.shape[-1])


def classes(problem: Problem, blocks: tuple[int, int]) -> Int[Mapped, "b n P M"]:
    """EMPTY, PARTIAL or FULL of every tile: numpy where no traced array shapes the mask. Ragged tiles are not full."""
    _, t, s, n, _ = problem.sizes
    shape = -(-t // blocks[0]), -(-s // blocks[1])
    if problem.allowed is None:
        found: Any = np.full((1, 1, *shape), FULL, np.int8)
    elif not known(problem.allowed):
        found = _judged(problem.allowed, (t, s), blocks)
    else:
        found = _remembered(problem, blocks, shape)
    xp: Any = np if isinstance(found, np.ndarray) else jnp
    ragged = np.zeros(shape, bool)
    ragged[-1, :] |= t % blocks[0] > 0
    ragged[:, -1] |= s % blocks[1] > 0
    found = xp.where(ragged & (found == FULL), PARTIAL, found).astype(np.int8)
    entries = found.size if isinstance(found, np.ndarray) else int(np.prod(found.shape))
    if entries > MOST_ENTRIES and found.shape[1] > 1:
        found = _union(found, 1, xp)
        entries //= n
    if entries > MOST_ENTRIES and found.shape[0] > 1:
        found = _union(found, 0, xp)
    return found


def walk(found: Int[Mapped, "b n P M"]) -> Walk:
    """The walk by rows over tiles of these classes; `swapaxes(-1, -2)` of them gives that by columns."""
    on_host = isinstance(found, np.ndarray)
    xp: Any = np if on_host else jnp
    visible = found != EMPTY
    count = visible.sum(axis=-1).astype(np.int32)
    order = xp.argsort(~visible, axis=-1, stable=True).astype(np.int32)
    width = max(1, int(count.max())) if on_host else found.shape[-1]
    order = order[..., :width]
    last = xp.maximum(count - 1, 0)[..., None]
    step = xp.minimum(np.arange(width, dtype=np.int32), last)
    order = xp.take_along_axis(order, step, axis=-1)
    full = xp.take_along_axis(found, order, axis=-1) == FULL
    entries = 2 * order + full.astype(np.int32)
    any_full = bool((found == FULL).any()) if on_host else True
    any_partial = bool((found == PARTIAL).any()) if on_host else True
    return Walk(count, entries.astype(np.int32), any_full, any_partial)


def _union(found: Mapped, axis: int, xp: Any) -> Mapped:
    """One map for all along an axis: a tile is visited if any sees it, and full if it is full for all."""
    full = (found == FULL).all(axis=axis, keepdims=True)
    some = (found != EMPTY).any(axis=axis, keepdims=True)
    return xp.where(full, FULL, xp.where(some, PARTIAL, EMPTY)).astype(np.int8)


def known(rule: Rule) -> bool:
    """Whether nothing traced goes into a rule."""
    return all(isinstance(x, np.ndarray) for x in rule.operands)


def _remembered(problem: Problem, blocks: tuple[int, int], shape: tuple[int, int]) -> Int[np.ndarray, "b n P M"]:
    """The classes of tiles of a mask that is known, worked out once for all programs."""
    rule, (_, t, s, _, _) = problem.allowed, problem.sizes
    assert rule is not None
    numbers = [(x.shape, str(x.dtype), x.tobytes()) for x in rule.operands]
    key = hashlib.sha256(repr((rule.text, t, s, blocks, numbers)).encode()).hexdigest()
    if key not in _KNOWN:
        while len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        if problem.tiles is not None:
            _KNOWN[key] = np.asarray(problem.tiles(blocks)).reshape(-1, 1, *shape)
        else:
            with jax.ensure_compile_time_eval():
                _KNOWN[key] = np.asarray(_judged(rule, (t, s), blocks))
    return _KNOWN[key]


def _judged(rule: Rule, sizes: tuple[int, int], blocks: tuple[int, int]) -> Mapped:
    """The classes of a rule's tiles, a band of rows at a time, so that memory stays at that of a band."""
    (t, s), (bq, bk) = sizes, blocks
    bands = -(-t // bq)
    starts = np.arange(bands, dtype=np.int32) * bq

    def at(x: jax.Array, rows: jax.Array) -> jax.Array:
        if by_difference(x):
            return x[..., rows[:, None] - np.arange(s) + s - 1]
        return jnp.take(x, rows, axis=2) if x.shape[2] > 1 else x

    def band(start: Any) -> jax.Array:
        rows = jnp.minimum(start + np.arange(bq), t - 1)  # the last band reads its last row again
        parts = [at(jnp.asarray(x), rows) for x in rule.operands]
        seen = jnp.asarray(rule(parts))
        seen = seen.reshape((1,) * (4 - seen.ndim) + seen.shape)  # of a rule that reads nothing
        seen = jnp.broadcast_to(seen, (*seen.shape[:-2], bq, s))
        keys = jnp.minimum(np.arange(-(-s // bk) * bk), s - 1)  # and the last tile its last key
        seen = jnp.take(seen, keys, axis=-1).reshape(*seen.shape[:-1], -1, bk)
        every, some = seen.all(axis=(-3, -1)), seen.any(axis=(-3, -1))
        return jnp.where(every, FULL, jnp.where(some, PARTIAL, EMPTY)).astype(jnp.int8)

    return jnp.moveaxis(jax.lax.map(band, starts), 0, -2)
