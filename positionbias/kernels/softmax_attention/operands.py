"""What a fused kernel reads beside q, k and v: the operands of both rules, packed by axis and type.

Packs are few arrays in place of many: of rows [b, n, T, R], of columns [b, n, R, S], of scalars [b, n, R], each of
float32 and of int32. Operands for all pairs are read tile by tile, and of those by difference the tile of each
diagonal. Gradients of the operands come back through the packing, by jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int, Mapped, Shaped
from positionbias.kernels.differences import by_difference, diagonal_tiles, diagonals, spread
from positionbias.kernels.softmax_attention.problem import Problem

Group = Literal["rows", "columns", "scalars", "dense", "diagonal"]


class Place(NamedTuple):
    """Where an operand lies, and its type, which a tile of it is turned back into."""

    group: Group
    real: bool  # among floats
    at: int
    dtype: Any

    def restored(self, tile: jax.Array) -> jax.Array:
        """A tile of the operand in its own type."""
        if self.dtype == bool:
            return tile != 0
        if self.dtype == np.uint32:
            return jax.lax.bitcast_convert_type(tile.astype(jnp.int32), jnp.uint32)
        return tile if tile.dtype == self.dtype else tile.astype(self.dtype)


class Packs(NamedTuple):
    """The arrays; None for a pack of nothing."""

    rows_real: Float[jax.Array, "b n T R"] | None
    columns_real: Float[jax.Array, "b n R S"] | None
    scalars_real: Float[jax.Array, "b n R"] | None
    rows_whole: Int[jax.Array, "b n T R"] | None
    columns_whole: Int[jax.Array, "b n R S"] | None
    scalars_whole: Int[jax.Array, "b n R"] | None
    dense: tuple[Shaped[jax.Array, "b n T S"], ...]
    diagonal: tuple[Shaped[jax.Array, "b n D bq bk"], ...]


def unsupported(problem: Problem) -> str | None:
    """Why the operands cannot be packed."""
    for name, rule in (("mask", problem.allowed), ("score", problem.score)):
        for operand in () if rule is None else rule.operands:
            kind = operand.dtype
            if kind.itemsize > 4:
                return f"{name} reads {kind}, and a kernel reads 32 bits at most"
    return None


def packed(problem: Problem, blocks: tuple[int, int], tiles: tuple[int, int]) -> tuple[list[Place], list[Place], Packs]:
    """The places of the operands of `allowed` and of `score`, and the packs, padded to so many tiles of `blocks`."""
    rows, columns = (size * count for size, count in zip(blocks, tiles, strict=True))
    groups: dict[tuple[Group, bool], list[Mapped]] = {}
    places = []
    for rule in (problem.allowed, problem.score):
        found = []
        for operand in () if rule is None else rule.operands:
            if by_difference(operand) and diagonals(blocks, tiles) > tiles[0] * tiles[1]:
                operand = spread(operand, *problem.sizes[1:3])  # sides share so few factors that no two tiles are alike
            group = _group(operand)
            real = bool(jnp.issubdtype(operand.dtype, jnp.floating))
            alone = group in ("dense", "diagonal")
            among = groups.setdefault((group, real and not alone), [])
            found.append(Place(group, real, len(among), np.dtype(operand.dtype)))
            among.append(_coded(operand, real, alone))
        places.append(found)
    sizes = {2: rows, 3: columns}

    def pack(group: Group, real: bool) -> Any:
        operands = groups.get((group, real))
        if not operands:
            return None
        lead = [max(x.shape[axis] for x in operands) for axis in (0, 1)]
        alike = [jnp.broadcast_to(x, (*lead, *x.shape[2:])) for x in operands]
        if group == "scalars":
            return jnp.stack([x[:, :, 0, 0] for x in alike], axis=-1)
        axis = 2 if group == "rows" else 3
        return jnp.concatenate([padded(x, axis, sizes[axis]) for x in alike], axis=5 - axis)

    dense = tuple(padded(padded(x, 2, rows), 3, columns) for x in groups.get(("dense", False), []))
    length = problem.sizes[1:3]
    diagonal = tuple(diagonal_tiles(x, length, blocks, tiles) for x in groups.get(("diagonal", False), []))
    packs = Packs(
        rows_real=pack("rows", True),
        columns_real=pack("columns", True),
        scalars_real=pack("scalars", True),
        rows_whole=pack("rows", False),
        columns_whole=pack("columns", False),
        scalars_whole=pack("scalars", False),
        dense=dense,
        diagonal=diagonal,
    )
    return places[0], places[1], packs


def tiles_of(places: Sequence[Place], load: Any) -> list[jax.Array]:
    """Tiles of operands in their own types; `load(place)` gives that of the pack."""
    return [place.restored(load(place)) for place in places]


def _group(operand: Mapped) -> Group:
    if by_difference(operand):
        return "diagonal"
    rows, columns = (size > 1 for size in operand.shape[2:])
    return "dense" if rows and columns else "rows" if rows else "columns" if columns else "scalars"


def _coded(operand: Mapped, real: bool, alone: bool) -> jax.Array:
    if real:
        return jnp.asarray(operand).astype(jnp.float32)
    if operand.dtype == np.uint32:
        return jax.lax.bitcast_convert_type(jnp.asarray(operand), jnp.int32)
    return jnp.asarray(operand).astype(jnp.int8 if alone and operand.dtype == bool else jnp.int32)


def padded(x: jax.Array, axis: int, to: int) -> jax.Array:
    """An array with an axis of `to` entries."""
    # What pads repeats the last entry: a rule need not be finite at 0.
    return jnp.pad(x, [(0, to - x.shape[a]) if a == axis else (0, 0) for a in range(x.ndim)], mode="edge")
