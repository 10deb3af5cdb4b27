"""The backward kernels for TPU: gradients summed along rows of tiles, and gradients summed along columns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from positionbias.kernels.softmax_attention.fused import ROWWISE, Arrays, Cotangents, Plan, Walks, placed
from positionbias.kernels.softmax_attention.tiles import slopes, weights
from positionbias.kernels.softmax_attention.tpu_grid import (
    COLUMNS,
    PLAIN,
    ROWS,
    Grid,
    Refs,
    Tile,
    along_rows,
    call,
    dot,
    lanes,
    made,
    shaped,
    visit_tile,
)


def read_back(grid: Grid, given: Cotangents) -> tuple[list[str], dict[str, Any]]:
    """What the backward kernels read beside the tile: names of the lanes of `given`, and arrays with their blocks."""
    arrays = grid.arrays
    names = [name for name in ROWWISE if getattr(given, name) is not None]
    read: dict[str, Any] = {"v": (arrays.v, grid.keys(arrays.v)), "do": (given.o, grid.rows(given.o))}
    if names:
        told = jnp.stack([getattr(given, name) for name in names], axis=-1)
        read["given"] = (told, grid.rows(told))
    if given.received is not None:
        received = given.received[:, :, None]
        read["received"] = (received, grid.columns(received))
    if given.block_mass is not None:
        masses = given.block_mass[:, :, :, None]
        read["mass"] = (masses, grid.whole(masses))
    return names, read


def sloped(
    names: list[str], refs: Refs, at: Any, tile: Tile
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """The weights, their slopes X less the part of D that is known, what received and mass add to X, and dO."""
    told = {name: refs["given"][:, i : i + 1] for i, name in enumerate(names)}
    do = refs["do"][...]
    a = weights(tile.s, tile.allowed, told.get("lse"))
    given = refs["received"][...] if "received" in refs else None
    if "mass" in refs:
        row = refs["mass"][...]
        lane = jax.lax.broadcasted_iota(jnp.int32, row.shape, 1)
        mass = jnp.sum(jnp.where(lane == at[3], row, 0.0), axis=1, keepdims=True)
        given = mass if given is None else given + mass
    by_index = told["mean_position"] * tile.key.astype(jnp.float32) if "mean_position" in told else None
    x = slopes(dot(do, refs["v"][...], ROWS), tile.seen, tile.keep, given, by_index, told.get("entropy"))
    return a, x - told["offset"] if "offset" in told else x, given, do


def rows(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, given: Cotangents) -> tuple[Any, Any, Any, Any]:
    """See `Kernels.rows`."""
    grid = Grid(plan, arrays, *walks.by_rows, by_rows=True)
    (batch, heads, length, size), bq = arrays.q.shape, plan.blocks[0]
    names, read = read_back(grid, given)
    moved = [place for place in plan.places_score if place.real and place.group in ("rows", "scalars")]
    dq = shaped(batch, heads, length, size, dtype=jnp.float32)
    outputs, scratch = {"dq": (dq, grid.rows(dq))}, {"q": (bq, size)}
    told = [*(f"operand_{i}" for i in range(len(moved))), *(["gathered"] * given.gathers)]
    if told:
        shape = shaped(batch, heads, length, len(told))
        outputs["told"] = (shape, grid.rows(shape))
    scratch |= dict.fromkeys(told, (bq, 1))
    if given.gathers:  # what the gathered part of D multiplies
        scratch |= {f"{name}_rest": shape for name, shape in scratch.items() if name != "gathered"}

    def body(refs: Refs, at: Any) -> None:
        @pl.when(at[4] == 0)
        def _() -> None:
            for name, shape in scratch.items():
                refs[f"sum_{name}"][...] = jnp.zeros(shape, jnp.float32)

        def visit(masked: bool) -> None:
            tile = made(grid, refs, at, masked, ("rows", "scalars"))
            a, x, more, _ = sloped(names, refs, at, tile)
            k = refs["k"][...]

            def add(ds: jax.Array, suffix: str) -> None:
                back, *operands = tile.back(ds)
                refs[f"sum_q{suffix}"][...] += dot(back.astype(k.dtype), k, PLAIN)
                for i, change in enumerate(operands):
                    refs[f"sum_operand_{i}{suffix}"][...] += change

            add(a * x, "")
            if more is not None and given.gathers:
                add(a, "_rest")
                refs["sum_gathered"][...] += along_rows(a * more)

        visit_tile(plan, at, visit)

        @pl.when(at[4] == pl.num_programs(3) - 1)
        def _() -> None:
            def whole(name: str) -> jax.Array:
                found = refs[f"sum_{name}"][...]
                if not given.gathers or name == "gathered":
                    return found
                return found - refs["sum_gathered"][...] * refs[f"sum_{name}_rest"][...]

            refs["dq"][...] = whole("q") * plan.scale
            if told:
                refs["told"][...] = lanes([whole(name) for name in told])

    found = call(grid, body, read, outputs, scratch, interpret)
    gathered = found["told"][..., len(moved)] if given.gathers else None
    changes = {
        group: placed([(at.at, found["told"][..., i]) for i, at in enumerate(moved) if at.group == group], pack, 3)
        for group, pack in (("rows", arrays.packs.rows_real), ("scalars", arrays.packs.scalars_real))
    }
    return found["dq"], gathered, changes["rows"], changes["scalars"]


def columns(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, given: Cotangents) -> tuple[Any, Any, Any]:
    """See `Kernels.columns`."""
    grid = Grid(plan, arrays, *walks.by_columns, by_rows=False)
    (batch, groups, length, size), values, bk = arrays.k.shape, arrays.v.shape[3], plan.blocks[1]
    names, read = read_back(grid, given)
    moved = [place for place in plan.places_score if place.real and place.group == "columns"]
    dk, dv = (shaped(batch, groups, length, n) for n in (size, values))
    outputs = {"dk": (dk, grid.keys(dk)), "dv": (dv, grid.keys(dv))}
    scratch = {"k": (bk, size), "v": (bk, values)}
    if moved:
        shape = shaped(batch, arrays.q.shape[1], len(moved), length)
        outputs["told"] = (shape, grid.columns(shape))
        scratch["told"] = (len(moved), bk)

    def body(refs: Refs, at: Any) -> None:
        first, step = pl.program_id(3) == 0, at[4]
        last = step == pl.num_programs(4) - 1

        @pl.when((step == 0) & first)
        def _() -> None:
            for name in ("k", "v"):
                refs[f"sum_{name}"][...] = jnp.zeros(scratch[name], jnp.float32)

        if moved:  # which every query head has of its own

            @pl.when(step == 0)
            def _() -> None:
                refs["sum_told"][...] = jnp.zeros(scratch["told"], jnp.float32)

        def visit(masked: bool) -> None:
            tile = made(grid, refs, at, masked, ("columns",))
            a, x, _, do = sloped(names, refs, at, tile)
            back, *operands = tile.back(a * x)
            q = refs["q"][...]
            refs["sum_k"][...] += dot(back.astype(q.dtype), q, COLUMNS)
            used = a if tile.keep is None else a * tile.keep
            refs["sum_v"][...] += dot(used.astype(do.dtype), do, COLUMNS)
            for i, change in enumerate(operands):
                refs["sum_told"][i : i + 1, :] += change

        visit_tile(plan, at, visit)

        @pl.when(last & (pl.program_id(3) == pl.num_programs(3) - 1))
        def _() -> None:
            refs["dk"][...] = refs["sum_k"][...] * plan.scale
            refs["dv"][...] = refs["sum_v"][...]

        if moved:

            @pl.when(last)
            def _() -> None:
                refs["told"][...] = refs["sum_told"][...]

    found = call(grid, body, read, outputs, scratch, interpret)
    told = [(place.at, found["told"][:, :, i]) for i, place in enumerate(moved)]
    return found["dk"], found["dv"], placed(told, arrays.packs.columns_real, 2)
