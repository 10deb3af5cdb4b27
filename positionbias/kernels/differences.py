"""Operands with a number for each difference of a query's and a key's index: Toeplitz matrices, kept short.

Such an operand is [b, n, T + S - 1], the only kind with three axes; entry i - j + S - 1 is that of query i and key j.
A tile of it reads a window of its entries, and tiles on the same diagonal are the same tile.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Mapped, Shaped


def by_difference(operand: Any) -> bool:
    """Whether an operand is of this kind."""
    return len(operand.shape) == 3


def spread(window: Shaped[Mapped, "... R"], rows: int, columns: int) -> Shaped[jax.Array, "... rows columns"]:
    """The matrix whose entry [i, j] is entry i - j + columns - 1 of a window of rows + columns - 1.

    By shapes alone, so that its gradient has no scatter: each row of copies laid end to end begins one entry earlier.
    """
    lead, size = window.shape[:-1], rows + columns - 1
    flipped = jnp.pad(jnp.flip(jnp.asarray(window), -1), [(0, 0)] * len(lead) + [(0, 1)])
    copies = jnp.broadcast_to(flipped[..., None, :], (*lead, rows, size + 1)).reshape(*lead, -1)
    skewed = jax.lax.slice_in_dim(copies, rows - 1, rows - 1 + rows * size, axis=-1)
    return skewed.reshape(*lead, rows, size)[..., :columns]


def at_rows(
    operand: Shaped[Mapped, "b n R"], length: int, start: Any, rows: int, first: Any, count: int
) -> Shaped[jax.Array, "b n rows count"]:
    """Of so many rows from `start` on, and `count` columns from `first` on; rows from T = `length` on are any."""
    columns = operand.shape[-1] + 1 - length
    padded = jnp.pad(jnp.asarray(operand), ((0, 0), (0, 0), (0, rows - 1)), mode="edge")
    window = jax.lax.dynamic_slice_in_dim(padded, start + columns - first - count, rows + count - 1, axis=-1)
    return spread(window, rows, count)


def diagonals(blocks: tuple[int, int], tiles: tuple[int, int]) -> int:
    """How many diagonals there are among so many rows and columns of tiles."""
    step = math.gcd(*blocks)
    return ((tiles[0] - 1) * blocks[0] + (tiles[1] - 1) * blocks[1]) // step + 1


def diagonal(blocks: tuple[int, int], tiles: tuple[int, int], row: Any, column: Any) -> Any:
    """On which of them the tile in this row and column lies."""
    step = math.gcd(*blocks)
    return row * (blocks[0] // step) + (tiles[1] - 1 - column) * (blocks[1] // step)


def column_of(blocks: tuple[int, int], tiles: tuple[int, int], number: Any, row: Any) -> tuple[Any, Any]:
    """The column in which a diagonal's tile of this row lies, and whether there is one."""
    step = math.gcd(*blocks)
    tall, wide = blocks[0] // step, blocks[1] // step
    away = row * tall + (tiles[1] - 1) * wide - number
    column = jax.lax.div(away, jnp.int32(wide))
    return column, (away >= 0) & (column * wide == away) & (column < tiles[1])


def diagonal_tiles(
    operand: Shaped[Mapped, "b n R"], length: tuple[int, int], blocks: tuple[int, int], tiles: tuple[int, int]
) -> Shaped[jax.Array, "b n D bq bk"]:
    """The tile of every diagonal, for T and S padded to whole tiles; what pads repeats the first and last entry."""
    step, count = math.gcd(*blocks), diagonals(blocks, tiles)
    rows, columns = (n * size for n, size in zip(tiles, blocks, strict=True))
    more = [(0, 0), (0, 0), (columns - length[1], rows - length[0])]
    padded = jnp.pad(jnp.asarray(operand), more, mode="edge")
    places = jnp.arange(count)[:, None] * step + jnp.arange(sum(blocks) - 1)
    return spread(padded[..., places], *blocks)
