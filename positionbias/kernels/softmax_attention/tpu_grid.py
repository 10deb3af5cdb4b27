"""What the kernels for TPU share: the grid, the blocks that a step reads, and its tile.

A grid step handles one tile: the lists of tiles to visit lie in scalar memory, and the index maps read them, so that
what is not visited is not copied either. What a row of tiles sums up stays in vector memory until its last step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from positionbias.kernels.differences import diagonal
from positionbias.kernels.softmax_attention.fused import Arrays, Plan
from positionbias.kernels.softmax_attention.operands import Place, tiles_of
from positionbias.kernels.softmax_attention.tiles import finite, kept

Refs = dict[str, Any]
Shape = Any  # an array, or the shape and type of one
ROWS = (((1,), (1,)), ((), ()))  # x y': rows of both are multiplied
COLUMNS = (((0,), (0,)), ((), ()))  # x' y
PLAIN = (((1,), (0,)), ((), ()))  # x y


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Which tile a grid step is: by rows of tiles, [B, N, P, W], or by columns, [B, G, M, N / G, W]."""

    plan: Plan
    arrays: Arrays
    count: jax.Array
    entries: jax.Array
    by_rows: bool

    @property
    def repeats(self) -> int:
        """Query heads a key head."""
        return int(self.arrays.q.shape[1] // self.arrays.k.shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        batch, heads = self.arrays.q.shape[:2]
        width = self.entries.shape[-1]
        if self.by_rows:
            return (batch, heads, self.arrays.q.shape[2] // self.plan.blocks[0], width)
        return (batch, heads // self.repeats, self.arrays.k.shape[2] // self.plan.blocks[1], self.repeats, width)

    def at(self, ids: Any, count: Any, entries: Any) -> tuple[Any, ...]:
        """Batch, query head, row of tiles, column of tiles, step, steps in all, and whether the tile is full."""
        batch, head = (ids[0], ids[1]) if self.by_rows else (ids[0], ids[1] * self.repeats + ids[3])
        step, fixed = ids[-1], ids[2]
        maps = self.count.shape
        row = ((batch if maps[0] > 1 else 0) * maps[1] + (head if maps[1] > 1 else 0)) * maps[2] + fixed
        entry = entries[row * self.entries.shape[-1] + step]
        other = entry >> 1
        tile = (fixed, other) if self.by_rows else (other, fixed)
        return (batch, head, *tile, step, count[row], entry & 1)

    def spec(self, shape: tuple[Any, ...], index: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
        """The block that `index(batch, head, row, column)` names."""
        return pl.BlockSpec(shape, lambda *args: index(*self.at(args[:-2], *args[-2:])[:4]))

    def rows(self, array: Shape) -> pl.BlockSpec:
        """A row of tiles of [b, n, T, *]."""
        b, n = (size > 1 for size in array.shape[:2])
        shape = (None, None, self.plan.blocks[0], array.shape[3])
        return self.spec(shape, lambda batch, head, row, _: (batch * b, head * n, row, 0))

    def keys(self, array: Shape) -> pl.BlockSpec:
        """A column of tiles of [B, G, S, *]."""
        shape = (None, None, self.plan.blocks[1], array.shape[3])
        return self.spec(shape, lambda batch, head, _, column: (batch, head // self.repeats, column, 0))

    def columns(self, array: Shape) -> pl.BlockSpec:
        """A column of tiles of [b, n, R, S]."""
        b, n = (size > 1 for size in array.shape[:2])
        shape = (None, None, array.shape[2], self.plan.blocks[1])
        return self.spec(shape, lambda batch, head, _, column: (batch * b, head * n, 0, column))

    def tiles(self, array: Shape) -> pl.BlockSpec:
        """A tile of [b, n, T, S]."""
        b, n = (size > 1 for size in array.shape[:2])
        return self.spec(
            (None, None, *self.plan.blocks), lambda batch, head, row, column: (batch * b, head * n, row, column)
        )

    def diagonals(self, array: Shape) -> pl.BlockSpec:
        """The tile of its diagonal, of [b, n, D, bq, bk]."""
        b, n = (size > 1 for size in array.shape[:2])
        return self.spec(
            (None, None, None, *self.plan.blocks),
            lambda batch, head, row, column: (
                batch * b,
                head * n,
                diagonal(self.plan.blocks, self.plan.tiles, row, column),
                0,
                0,
            ),
        )

    def whole(self, array: Shape) -> pl.BlockSpec:
        """All of a row of [B, N, P, 1, M]."""
        shape = (None, None, None, 1, array.shape[4])
        return self.spec(shape, lambda batch, head, row, _: (batch, head, row, 0, 0))


def call(
    grid: Grid,
    body: Callable[[Refs, Any], None],
    extra: dict[str, tuple[jax.Array, pl.BlockSpec]],
    outputs: dict[str, tuple[Shape, pl.BlockSpec]],
    scratch: Mapping[str, tuple[int, ...]],
    interpret: Any,
) -> dict[str, jax.Array]:
    """Run `body(refs, at)` on the grid, with what every kernel reads and `extra`."""
    arrays, packs = grid.arrays, grid.arrays.packs
    read: dict[str, tuple[Any, pl.BlockSpec]] = {
        "q": (arrays.q, grid.rows(arrays.q)),
        "k": (arrays.k, grid.keys(arrays.k)),
    }
    for name, spec in (("rows", grid.rows), ("columns", grid.columns)):
        for kind in ("real", "whole"):
            pack = getattr(packs, f"{name}_{kind}")
            if pack is not None:
                read[f"{name}_{kind}"] = (pack, spec(pack))
    for kind in ("real", "whole"):
        pack = getattr(packs, f"scalars_{kind}")
        if pack is not None:
            read[f"scalars_{kind}"] = in_scalar_memory(pack)
    read |= {f"dense_{i}": (x, grid.tiles(x)) for i, x in enumerate(packs.dense)}
    read |= {f"diagonal_{i}": (x, grid.diagonals(x)) for i, x in enumerate(packs.diagonal)}
    if arrays.seed is not None:
        read["seed"] = in_scalar_memory(arrays.seed)
    read |= extra

    def kernel(count: Any, entries: Any, *refs: Any) -> None:
        named = dict(zip([*read, *outputs, *(f"sum_{name}" for name in scratch)], refs, strict=True))
        ids = tuple(pl.program_id(axis) for axis in range(len(grid.shape)))
        body(named, grid.at(ids, count, entries))

    semantics: Any = ("parallel",) * 3 + ("arbitrary",) * (len(grid.shape) - 3)
    found = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid.shape,
            in_specs=[spec for _, spec in read.values()],
            out_specs=[spec for _, spec in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=[shape for shape, _ in outputs.values()],
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=interpret,
    )(grid.count.reshape(-1), grid.entries.reshape(-1), *(array for array, _ in read.values()))
    return dict(zip(outputs, found, strict=True))


def in_scalar_memory(array: jax.Array) -> tuple[jax.Array, pl.BlockSpec]:
    """All of a small array as one row [1, L]: a line alone would break the tiling once `vmap` stacks it."""
    return array.reshape(1, -1), pl.BlockSpec(memory_space=pltpu.SMEM)


def _load(grid: Grid, refs: Refs, batch: Any, head: Any) -> Callable[[Place], jax.Array]:
    """What gives the tile of an operand's pack: a column, a row, a number or a whole tile."""

    def load(place: Place) -> jax.Array:
        if place.group in ("dense", "diagonal"):
            found = refs[f"{place.group}_{place.at}"][...]
            return found.astype(jnp.int32) if found.dtype == jnp.int8 else found
        ref = refs[f"{place.group}_{'real' if place.real else 'whole'}"]
        if place.group == "rows":
            return ref[:, place.at : place.at + 1]
        if place.group == "columns":
            return ref[place.at : place.at + 1, :]
        packs = grid.arrays.packs
        b, n, r = (packs.scalars_real if place.real else packs.scalars_whole).shape  # type: ignore[union-attr]
        return ref[0, ((batch if b > 1 else 0) * n + (head if n > 1 else 0)) * r + place.at]

    return load


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """The scores of one tile, and how their gradient goes back."""

    s: jax.Array
    allowed: jax.Array | None
    back: Callable[[jax.Array], tuple[jax.Array, ...]]  # of the raw scores, and of the operands asked for
    query: jax.Array  # indices [bq, bk]
    key: jax.Array
    keep: jax.Array | None

    @property
    def seen(self) -> jax.Array:
        """The scores, finite, and 0 where not allowed."""
        return finite(self.s, self.allowed)


def made(grid: Grid, refs: Refs, at: Any, masked: bool, back_to: tuple[str, ...] = ()) -> Tile:
    """The tile of this step; `back_to` names the groups of operands whose gradients are wanted."""
    plan, (batch, head, row, column) = grid.plan, at[:4]
    load = _load(grid, refs, batch, head)
    raw = dot(refs["q"][...], refs["k"][...], ROWS) * plan.scale
    query = row * plan.blocks[0] + jax.lax.broadcasted_iota(jnp.int32, plan.blocks, 0)
    key = column * plan.blocks[1] + jax.lax.broadcasted_iota(jnp.int32, plan.blocks, 1)
    given = [load(place) for place in plan.places_score]
    moved = [i for i, place in enumerate(plan.places_score) if place.real and place.group in back_to]
    # A number for all rows has a gradient a row: they are summed outside.
    alone = [jnp.broadcast_to(x, (plan.blocks[0], 1)) if not jnp.ndim(x) else x for x in (given[i] for i in moved)]

    def scored(raw: jax.Array, *changed: jax.Array) -> jax.Array:
        if plan.score is None:
            return raw
        now = list(given)
        for i, x in zip(moved, changed, strict=True):
            now[i] = x
        tiles = [place.restored(x) for place, x in zip(plan.places_score, now, strict=True)]
        return jnp.broadcast_to(plan.score(tiles, raw), raw.shape)

    if back_to:
        s, back = jax.vjp(scored, raw, *alone)
    else:
        s, back = scored(raw), lambda ds: (ds,)
    allowed = None
    if masked:
        if plan.allowed is not None:
            allowed = jnp.broadcast_to(plan.allowed(tiles_of(plan.places_allowed, load)), plan.blocks)
        for axis, index in ((0, query), (1, key)):
            if plan.ragged(axis):
                inside = index < plan.length[axis]
                allowed = inside if allowed is None else allowed & inside
    keep = None
    if plan.rate is not None:
        keep = kept(refs["seed"][0, 0], plan.rate, batch, head, query, key)
    return Tile(s, allowed, back, query, key, keep)


def dot(x: jax.Array, y: jax.Array, axes: Any) -> jax.Array:
    """A product of two tiles, summed in float32; of float32 as precise as jax is configured for.

    Products of 16-bit numbers are exact in float32, and the compiler refuses any other precision for them.
    """
    precision = jax.lax.Precision.DEFAULT if x.dtype.itemsize == 2 else None
    return jax.lax.dot_general(x, y, axes, precision, preferred_element_type=jnp.float32)


def visit_tile(plan: Plan, at: Any, body: Callable[[bool], None]) -> None:
    """Run `body(masked)` in the steps that are a tile; rules of masks only where the tile is not full."""
    *_, step, count, full = at
    if plan.any_full and plan.any_partial:
        pl.when((step < count) & (full == 0))(lambda: body(True))
        pl.when((step < count) & (full == 1))(lambda: body(False))
    else:
        pl.when(step < count)(lambda: body(plan.any_partial))


def shaped(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """The shape of an output."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def along_rows(x: jax.Array) -> jax.Array:
    """The sum of each row, as a column."""
    return jnp.sum(x, axis=1, keepdims=True)


def lanes(columns: list[jax.Array]) -> jax.Array:
    """Columns [bq, 1] side by side."""
    shape = (columns[0].shape[0], len(columns))
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    found = jnp.zeros(shape, jnp.float32)
    for i, column in enumerate(columns):
        found = jnp.where(lane == i, column, found)
    return found
