"""What a fused kernel reads beside q, k and v: the operands of both rules, packed by axis and type.

Packs are few arrays in place of many: of rows [b, n, T, R], of columns [b, n, R, S], of scalars [b, n, R], each of
float32 and of int32. Gradients of the operands come back through the packing, by jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int, Mapped, Shaped
from positionbias.kernels.softmax_attention.problem import Problem

Group = Literal["rows", "columns", "scalars", "dense"]


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


def unsupported(problem: Problem, pairs: bool = False) -> str | None:
    """Why the operands cannot be packed; `pairs` says whether a driver takes a real number for each pair."""
    for name, rule in (("mask", problem.allowed), ("score", problem.score)):
        for operand in () if rule is None else rule.operands:
            kind = operand.dtype
            if kind.itemsize > 4:
                return f"{name} reads {kind}, and a kernel reads 32 bits at most"
            if not pairs and _group(operand) == "dense" and jnp.issubdtype(kind, jnp.floating):
                return f"{name} reads a number for each pair ({rule.dense_because if rule else ''})"
    return None


def packed(problem: Problem, rows: int, columns: int) -> tuple[list[Place], list[Place], Packs]:
    """The places of the operands of `allowed` and of `score`, and the packs, padded to so many rows and columns."""
    groups: dict[tuple[Group, bool], list[Mapped]] = {}
    places = []
    for rule in (problem.allowed, problem.score):
        found = []
        for operand in () if rule is None else rule.operands:
            group = _group(operand)
            real = bool(jnp.issubdtype(operand.dtype, jnp.floating))
            among = groups.setdefault((group, real and group != "dense"), [])
            found.append(Place(group, real, len(among), np.dtype(operand.dtype)))
            among.append(_coded(operand, real, group == "dense"))
        places.append(found)
    sizes = {2: rows, 3: columns}

    def pack(group: Group, real: bool) -> Any:
        operands = groups.get((group, real))
        if not operands:
            return None
        lead = [max(x.shape[axis] for x in operands) for axis in (0, 1)]
        spread = [jnp.broadcast_to(x, (*lead, *x.shape[2:])) for x in operands]
        if group == "scalars":
            return jnp.stack([x[:, :, 0, 0] for x in spread], axis=-1)
        axis = 2 if group == "rows" else 3
        return jnp.concatenate([padded(x, axis, sizes[axis]) for x in spread], axis=5 - axis)

    dense = tuple(padded(padded(x, 2, rows), 3, columns) for x in groups.get(("dense", False), []))
    packs = Packs(
        rows_real=pack("rows", True),
        columns_real=pack("columns", True),
        scalars_real=pack("scalars", True),
        rows_whole=pack("rows", False),
        columns_whole=pack("columns", False),
        scalars_whole=pack("scalars", False),
        dense=dense,
    )
    return places[0], places[1], packs


def tiles_of(places: Sequence[Place], load: Any) -> list[jax.Array]:
    """Tiles of operands in their own types; `load(place)` gives that of the pack."""
    return [place.restored(load(place)) for place in places]


def _group(operand: Mapped) -> Group:
    rows, columns = (size > 1 for size in operand.shape[2:])
    return "dense" if rows and columns else "rows" if rows else "columns" if columns else "scalars"


def _coded(operand: Mapped, real: bool, dense: bool) -> jax.Array:
    if real:
        return jnp.asarray(operand).astype(jnp.float32)
    if operand.dtype == np.uint32:
        return jax.lax.bitcast_convert_type(jnp.asarray(operand), jnp.int32)
    return jnp.asarray(operand).astype(jnp.int8 if dense and operand.dtype == bool else jnp.int32)


def padded(x: jax.Array, axis: int, to: int) -> jax.Array:
    """An array with an axis of `to` entries."""
    # What pads repeats the last entry: a rule need not be finite at 0.
    return jnp.pad(x, [(0, to - x.shape[a]) if a == axis else (0, 0) for a in range(x.ndim)], mode="edge")
