"""The gradient of an operand read by whole tiles, by XLA, for drivers whose kernels cannot sum it up.

It is the sum of dS (see `tiles`) times the score's derivative over the examples and heads that share the operand, and
for one by difference along its diagonals. Scores are made again for a row of tiles and one example at a time, of empty
tiles too, so that memory grows as the tile's rows times S.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from positionbias.kernels.differences import diagonal
from positionbias.kernels.softmax_attention.fused import Arrays, Cotangents, Plan, Walks
from positionbias.kernels.softmax_attention.operands import Place
from positionbias.kernels.softmax_attention.tiles import finite, kept, slopes, weights


class _Rows:
    """What a row of tiles reads, of one example: arrays [N, rows, S] or that broadcast to it."""

    def __init__(self, plan: Plan, arrays: Arrays, given: Cotangents, batch: Any, row: Any) -> None:
        self.plan, self.arrays, self.given, self.batch, self.row = plan, arrays, given, batch, row

    def example(self, x: jax.Array) -> jax.Array:
        """Of [B|1, ...], what belongs to the example."""
        return jax.lax.dynamic_index_in_dim(x, self.batch if x.shape[0] > 1 else 0, 0, keepdims=False)

    def cut(self, x: jax.Array, axis: int) -> jax.Array:
        """The rows of an array."""
        size = self.plan.blocks[0]
        return jax.lax.dynamic_slice_in_dim(x, self.row * size, size, axis)

    def operand(self, place: Place) -> jax.Array:
        """An operand as its pack holds it, [N|1, rows|1, S|1]."""
        packs = self.arrays.packs
        if place.group == "dense":
            return self.cut(self.example(packs.dense[place.at]), 1)
        if place.group == "diagonal":
            found = self.example(packs.diagonal[place.at])[:, self.diagonals]
            return jnp.moveaxis(found, 1, 2).reshape(found.shape[0], self.plan.blocks[0], -1)
        pack = self.example(getattr(packs, f"{place.group}_{'real' if place.real else 'whole'}"))
        if place.group == "rows":
            return self.cut(pack, 1)[:, :, place.at, None]
        return pack[:, place.at, None] if place.group == "columns" else pack[:, place.at, None, None]

    @property
    def diagonals(self) -> jax.Array:
        """On which each tile of the row lies."""
        blocks, tiles = self.plan.blocks, self.plan.tiles
        return diagonal(blocks, tiles, self.row, jnp.arange(tiles[1]))

    def of_rows(self, x: jax.Array | None) -> jax.Array | None:
        """Numbers of rows, [N, rows, 1]."""
        return None if x is None else self.cut(self.example(x), 1)[..., None]

    def back(self, place: Place) -> jax.Array:
        """The gradient of what the rows read of an operand."""
        plan, arrays, given = self.plan, self.arrays, self.given
        n, s = arrays.q.shape[1], arrays.k.shape[2]
        query = self.row * plan.blocks[0] + jnp.arange(plan.blocks[0], dtype=jnp.int32)[:, None]
        key = jnp.arange(s, dtype=jnp.int32)
        q, do = (self.cut(self.example(x), 1) for x in (arrays.q, given.o))
        k, v = (jnp.repeat(self.example(x), n // x.shape[1], axis=0) for x in (arrays.k, arrays.v))
        raw = jnp.einsum("nth,nsh->nts", q, k, preferred_element_type=jnp.float32) * plan.scale
        operands = [self.operand(one) for one in plan.places_score]
        which = plan.places_score.index(place)

        def scored(changed: jax.Array) -> jax.Array:
            now = [*operands[:which], changed, *operands[which + 1 :]]
            assert plan.score is not None
            tiles = [one.restored(x) for one, x in zip(plan.places_score, now, strict=True)]
            return jnp.broadcast_to(plan.score(tiles, raw), raw.shape)

        s_now, pulled = jax.vjp(scored, operands[which])
        allowed = (query < plan.length[0]) & (key < plan.length[1])
        if plan.allowed is not None:
            seen = [one.restored(self.operand(one)) for one in plan.places_allowed]
            allowed = allowed & plan.allowed(seen)
        a = weights(s_now, allowed, self.of_rows(given.lse))
        keep = None
        if plan.rate is not None:
            heads = jnp.arange(n, dtype=jnp.int32)[:, None, None]
            keep = kept(arrays.seed, plan.rate, jnp.int32(self.batch), heads, query, key)
        more = None if given.received is None else self.example(given.received)[:, None]
        if given.block_mass is not None:
            mass = jax.lax.dynamic_slice_in_dim(self.example(given.block_mass), self.row, 1, 1)
            mass = jnp.repeat(mass, plan.blocks[1], axis=2)
            more = mass if more is None else more + mass
        place_of = self.of_rows(given.mean_position)
        by_index = None if place_of is None else place_of * key.astype(jnp.float32)
        dp = jnp.einsum("nth,nsh->nts", do, v, preferred_element_type=jnp.float32)
        x = slopes(dp, finite(s_now, allowed), keep, more, by_index, self.of_rows(given.entropy))
        offset = self.of_rows(given.offset)
        return pulled(a * (x if offset is None else x - offset))[0]


def pairs(plan: Plan, arrays: Arrays, walks: Walks, given: Cotangents, place: Place) -> jax.Array:
    """See `Kernels.pairs`."""
    operand = (arrays.packs.dense if place.group == "dense" else arrays.packs.diagonal)[place.at]

    def one(total: jax.Array, at: Any) -> tuple[jax.Array, None]:
        batch, row = at
        rows = _Rows(plan, arrays, given, batch, row)
        change, mine = rows.back(place), batch if operand.shape[0] > 1 else 0
        if place.group == "dense":
            here = (mine, 0, row * plan.blocks[0], 0)
            before = jax.lax.dynamic_slice(total, here, (1, *change.shape))
            return jax.lax.dynamic_update_slice(total, before + change, here), None
        tiles = change.reshape(*change.shape[:2], plan.tiles[1], plan.blocks[1])
        return total.at[mine, :, rows.diagonals].add(jnp.moveaxis(tiles, 2, 0)), None

    batch, rows = jnp.arange(arrays.q.shape[0]), jnp.arange(plan.tiles[0])
    visits = (jnp.repeat(batch, rows.size), jnp.tile(rows, batch.size))
    return jax.lax.scan(one, jnp.zeros(operand.shape, jnp.float32), visits)[0]
