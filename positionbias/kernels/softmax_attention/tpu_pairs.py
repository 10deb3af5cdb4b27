"""The kernels for TPU that give the gradient of an operand read by whole tiles: a number a pair, or a difference.

Such an operand is read by many examples or heads, and the tile of a diagonal at many places: here each of its tiles is
visited for all of them in turn.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from positionbias.kernels.differences import column_of, diagonals
from positionbias.kernels.softmax_attention.fused import Arrays, Cotangents, Plan, Walks
from positionbias.kernels.softmax_attention.operands import Place
from positionbias.kernels.softmax_attention.tpu_backward import read_back, sloped
from positionbias.kernels.softmax_attention.tpu_grid import Grid, Refs, Shape, call, made, shaped, visit_tile
from positionbias.masks.base import EMPTY, FULL


@dataclasses.dataclass(frozen=True, eq=False)
class _PairGrid(Grid):
    """Which tile a grid step is: by tiles of an operand [b, n, T, S], [b, n, P, M, B N / (b n)]."""

    lead: tuple[int, int] = (1, 1)  # b and n

    @property
    def shares(self) -> tuple[int, int]:
        """Examples and heads that share a tile."""
        batch, heads = self.arrays.q.shape[:2]
        return batch // self.lead[0], heads // self.lead[1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.lead, *self.plan.tiles, self.shares[0] * self.shares[1])

    @property
    def steps(self) -> int:
        """Of a tile of the operand."""
        return self.shape[4]

    def at(self, ids: Any, classes: Any, _: Any) -> tuple[Any, ...]:
        return self._visit(ids, classes, ids[2], ids[3], ids[4], True)

    def _visit(self, ids: Any, classes: Any, row: Any, column: Any, step: Any, there: Any) -> tuple[Any, ...]:
        heads = self.shares[1]
        batch, head = ids[0] + ids[4] // heads, ids[1] + ids[4] % heads
        maps = self.count.shape
        line = ((batch if maps[0] > 1 else 0) * maps[1] + (head if maps[1] > 1 else 0)) * maps[2] + row
        kind = classes[line * maps[3] + column]
        return (batch, head, row, column, step, jnp.where(there & (kind != EMPTY), step + 1, 0), kind // FULL)


@dataclasses.dataclass(frozen=True, eq=False)
class _DiagonalGrid(_PairGrid):
    """By tiles of an operand [b, n, D, bq, bk] and the rows of tiles that its diagonal meets, [b, n, D, P, ...]."""

    @property
    def shape(self) -> tuple[int, ...]:
        blocks, tiles = self.plan.blocks, self.plan.tiles
        return (*self.lead, diagonals(blocks, tiles), tiles[0], self.shares[0] * self.shares[1])

    @property
    def steps(self) -> int:
        return self.shape[3] * self.shape[4]

    def at(self, ids: Any, classes: Any, _: Any) -> tuple[Any, ...]:
        column, there = column_of(self.plan.blocks, self.plan.tiles, ids[2], ids[3])
        column = jnp.clip(column, 0, self.plan.tiles[1] - 1)
        return self._visit(ids, classes, ids[3], column, ids[3] * self.shape[4] + ids[4], there)

    def changed(self, array: Shape) -> pl.BlockSpec:
        """The tile of the diagonal, also where it meets no tile of this row."""
        return pl.BlockSpec((None, None, None, *self.plan.blocks), lambda b, n, d, *_: (b, n, d, 0, 0))


def pairs(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, given: Cotangents, place: Place) -> jax.Array:
    """See `Kernels.pairs`."""
    operand = (arrays.packs.dense if place.group == "dense" else arrays.packs.diagonal)[place.at]
    lead = (operand.shape[0], operand.shape[1])
    change = shaped(*operand.shape)
    told = (plan, arrays, walks.classes, jnp.zeros((1,), jnp.int32))
    grid: _PairGrid
    if place.group == "dense":
        grid = _PairGrid(*told, by_rows=True, lead=lead)
        written = grid.tiles(change)
    else:
        grid = _DiagonalGrid(*told, by_rows=True, lead=lead)
        written = grid.changed(change)
    names, read = read_back(grid, given)
    which = [one for one in plan.places_score if one.real and one.group == place.group].index(place)

    def body(refs: Refs, at: Any) -> None:
        @pl.when(at[4] == 0)
        def _() -> None:
            refs["sum_change"][...] = jnp.zeros(plan.blocks, jnp.float32)

        def visit(masked: bool) -> None:
            tile = made(grid, refs, at, masked, (place.group,))
            a, x, _, _ = sloped(names, refs, at, tile)
            refs["sum_change"][...] += tile.back(a * x)[1 + which]

        visit_tile(plan, at, visit)

        @pl.when(at[4] == grid.steps - 1)
        def _() -> None:
            refs["change"][...] = refs["sum_change"][...]

    return call(grid, body, read, {"change": (change, written)}, {"change": plan.blocks}, interpret)["change"]
