"""The kernel for TPU that gives the gradient of an operand with a number for each pair of a query and a key.

Such an operand is read by many examples or heads; here each of its tiles is visited for all of them in turn.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from positionbias.kernels.softmax_attention.fused import Arrays, Cotangents, Plan, Walks
from positionbias.kernels.softmax_attention.operands import Place
from positionbias.kernels.softmax_attention.tpu_backward import read_back, sloped
from positionbias.kernels.softmax_attention.tpu_grid import Grid, Refs, call, made, shaped, visit_tile
from positionbias.masks.base import EMPTY, FULL


@dataclasses.dataclass(frozen=True, eq=False)
class _PairGrid(Grid):
    """Which tile a grid step is: by tiles of an operand [b, n, T, S], [b, n, P, M, B N / (b n)]."""

    lead: tuple[int, int] = (1, 1)  # b and n

    @property
    def _shares(self) -> tuple[int, int]:
        """Examples and heads that share a tile."""
        batch, heads = self.arrays.q.shape[:2]
        return batch // self.lead[0], heads // self.lead[1]

    @property
    def shape(self) -> tuple[int, ...]:
        (bq, bk), (examples, heads) = self.plan.blocks, self._shares
        return (*self.lead, self.arrays.q.shape[2] // bq, self.arrays.k.shape[2] // bk, examples * heads)

    def at(self, ids: Any, classes: Any, _: Any) -> tuple[Any, ...]:
        heads = self._shares[1]
        batch, head = ids[0] + ids[4] // heads, ids[1] + ids[4] % heads
        maps = self.count.shape
        row = ((batch if maps[0] > 1 else 0) * maps[1] + (head if maps[1] > 1 else 0)) * maps[2] + ids[2]
        kind = classes[row * maps[3] + ids[3]]
        return (batch, head, ids[2], ids[3], ids[4], jnp.where(kind == EMPTY, 0, ids[4] + 1), kind // FULL)


def pairs(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, given: Cotangents, place: Place) -> jax.Array:
    """See `Kernels.pairs`."""
    operand = arrays.packs.dense[place.at]
    lead = (operand.shape[0], operand.shape[1])
    grid = _PairGrid(plan, arrays, walks.classes, jnp.zeros((1,), jnp.int32), by_rows=True, lead=lead)
    names, read = read_back(grid, given)
    which = [one for one in plan.places_score if one.real and one.group == "dense"].index(place)
    change = shaped(*operand.shape)

    def body(refs: Refs, at: Any) -> None:
        @pl.when(at[4] == 0)
        def _() -> None:
            refs["sum_change"][...] = jnp.zeros(plan.blocks, jnp.float32)

        def visit(masked: bool) -> None:
            tile = made(grid, refs, at, masked, ("dense",))
            a, x, _, _ = sloped(names, refs, at, tile)
            refs["sum_change"][...] += tile.back(a * x)[1 + which]

        visit_tile(plan, at, visit)

        @pl.when(at[4] == pl.num_programs(4) - 1)
        def _() -> None:
            refs["change"][...] = refs["sum_change"][...]

    outputs = {"change": (change, grid.tiles(change))}
    return call(grid, body, read, outputs, {"change": plan.blocks}, interpret)["change"]
