"""The backward kernels for Mosaic GPU: gradients summed along strips of queries, and along strips of keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from positionbias.kernels.gpu import STRIP, flipped, matmul, zeros
from positionbias.kernels.softmax_attention.fused import ROWWISE, Arrays, Cotangents, Plan, Walks, placed
from positionbias.kernels.softmax_attention.gpu_grid import (
    NARROWEST,
    Carry,
    Grid,
    Input,
    Tile,
    Visit,
    added,
    along,
    call,
    halvings,
    made,
    put,
    shaped,
)
from positionbias.kernels.softmax_attention.tiles import slopes, weights


class _Given:
    """The cotangents, as the inputs of a kernel, and what they are in a tile."""

    def __init__(self, grid: Grid, given: Cotangents) -> None:
        self.grid, self.mass = grid, given.block_mass is not None
        self.names = [name for name in ROWWISE if getattr(given, name) is not None]
        self.inputs = {}
        if self.names:
            self.inputs["given"] = Input(jnp.stack([getattr(given, name) for name in self.names], axis=2), 0)
        if given.received is not None:
            self.inputs["received"] = Input(given.received[:, :, None], 1)
        self.whole = {} if given.block_mass is None else {"mass": given.block_mass}

    def of_row(self, here: Visit, name: str) -> jax.Array | None:
        """One of `ROWWISE`."""
        if name not in self.names:
            return None
        return along(self.grid, here, "given", 0, self.names.index(name))

    def added(self, here: Visit) -> jax.Array | None:
        """What attention received and the mass of tiles add to the slopes of a tile."""
        found = along(self.grid, here, "received", 1) if "received" in self.inputs else None
        if "mass" not in self.whole:
            return found
        mass = here.refs["mass"][(here.batch, here.head, *here.tile)]
        return jnp.broadcast_to(mass, self.grid.tile) if found is None else found + mass

    def weights(self, here: Visit, tile: Tile) -> jax.Array:
        """Of the tile."""
        return weights(tile.s, tile.allowed, self.of_row(here, "lse"))

    def product(self, here: Visit) -> jax.Array:
        """dO v' of the tile."""
        mine, other = ("do", "v") if self.grid.side == 0 else ("v", "do")
        return matmul(here.refs[mine], flipped(here.refs[other]), self.grid.tile)

    def slopes(self, here: Visit, tile: Tile, dp: jax.Array) -> jax.Array:
        """X - D of `tiles`."""
        by_index, offset = self.of_row(here, "mean_position"), self.of_row(here, "offset")
        if by_index is not None:
            by_index = by_index * tile.key.astype(jnp.float32)
        x = slopes(dp, tile.seen, tile.keep, self.added(here), by_index, self.of_row(here, "entropy"))
        return x if offset is None else x - offset


def _fitting(plan: Plan, arrays: Arrays, given: Cotangents) -> dict[str, int]:
    """The width and warpgroups of a grid that leave room in the registers: compiled for sm_90a, more spill."""
    large = max(arrays.q.shape[3], arrays.v.shape[3]) > STRIP
    stats = any(x is not None for x in (given.entropy, given.mean_position, given.received, given.block_mass))
    busy = (plan.score is not None) + (plan.rate is not None) + stats > 1
    width = STRIP >> (large + busy + halvings(plan))
    return {"width": max(width, NARROWEST), "most": 1 if width < NARROWEST else 2}


def _summed(carry: Carry, operands: list[jax.Array]) -> Carry:
    """The sums of the gradients of operands, with those of a tile."""
    return {f"operand_{i}": carry[f"operand_{i}"] + jnp.sum(x, axis=1) for i, x in enumerate(operands)}


def rows(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, given: Cotangents) -> tuple[Any, Any, Any, Any]:
    """See `Kernels.rows`."""
    gathered = None
    if given.gathers:  # first: what it takes is one product, as would its share of every gradient
        gathered = _gathered(interpret, plan, arrays, walks, given)
        assert given.offset is not None
        given = given._replace(offset=given.offset + gathered)
    grid = Grid(plan, arrays, walks.by_rows, 0, interpret=interpret, **_fitting(plan, arrays, given))
    told = _Given(grid, given)
    batch, heads, length, size = arrays.q.shape
    moved = [place for place in plan.places_score if place.real and place.group in ("rows", "scalars")]
    outputs = {"dq": shaped((batch, heads, length, size))}
    outputs |= {f"operand_{i}": shaped((batch, heads, length)) for i in range(len(moved))}

    def start() -> Carry:
        return {"dq": zeros(STRIP, size), **{f"operand_{i}": zeros(STRIP) for i in range(len(moved))}}

    def step(here: Visit, carry: Carry) -> Carry:
        dp = told.product(here)  # first, as `made` begins with a product: what follows keeps no tiles over one
        tile = made(grid, here, ("rows", "scalars"))
        ds, *operands = tile.back(told.weights(here, tile) * told.slopes(here, tile, dp))
        found = _summed(carry, operands)
        return found | {"dq": added(here, carry["dq"], ds.astype(arrays.k.dtype), here.refs["k"])}

    def finish(here: Visit, carry: Carry) -> None:
        put(grid, here, "dq", carry["dq"] * plan.scale)
        for i in range(len(moved)):
            put(grid, here, f"operand_{i}", carry[f"operand_{i}"])

    more = {"v": Input(arrays.v, 1, True), "do": Input(given.o, 0, True), **told.inputs}
    found = call("attention_rows", grid, more, outputs, start, step, finish, told.whole)
    changes = {
        group: placed([(at.at, found[f"operand_{i}"]) for i, at in enumerate(moved) if at.group == group], pack, 3)
        for group, pack in (("rows", arrays.packs.rows_real), ("scalars", arrays.packs.scalars_real))
    }
    return found["dq"], gathered, changes["rows"], changes["scalars"]


def _gathered(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, given: Cotangents) -> jax.Array:
    """The part of D that is a sum over keys."""
    grid = Grid(plan, arrays, walks.by_rows, 0, STRIP >> (halvings(plan) > 1), interpret)
    told = _Given(grid, given)

    def step(here: Visit, carry: Carry) -> Carry:
        more = told.added(here)
        assert more is not None
        a = told.weights(here, made(grid, here))
        return {"gathered": carry["gathered"] + jnp.sum(a * more, axis=1)}

    def finish(here: Visit, carry: Carry) -> None:
        put(grid, here, "gathered", carry["gathered"])

    outputs = {"gathered": shaped(arrays.q.shape[:3])}
    found = call(
        "attention_gathered", grid, told.inputs, outputs, lambda: {"gathered": zeros(STRIP)}, step, finish, told.whole
    )
    return found["gathered"]


def columns(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, given: Cotangents) -> tuple[Any, Any, Any]:
    """See `Kernels.columns`. Query heads that share keys have a sum each, and these are added outside."""
    grid = Grid(plan, arrays, walks.by_columns, 1, interpret=interpret, **_fitting(plan, arrays, given))
    told = _Given(grid, given)
    (batch, heads), (groups, length, size), values = arrays.q.shape[:2], arrays.k.shape[1:], arrays.v.shape[3]
    moved = [place for place in plan.places_score if place.real and place.group == "columns"]
    outputs = {name: shaped((batch, heads, length, n)) for name, n in (("dk", size), ("dv", values))}
    outputs |= {f"operand_{i}": shaped((batch, heads, length)) for i in range(len(moved))}

    def start() -> Carry:
        sums = {f"operand_{i}": zeros(STRIP) for i in range(len(moved))}
        return {"dk": zeros(STRIP, size), "dv": zeros(STRIP, values), **sums}

    def step(here: Visit, carry: Carry) -> Carry:
        # With a rule first, as in the kernel for rows; without, a tile of weights is all that would be kept meanwhile.
        dp = None if plan.score is None else told.product(here)
        tile = made(grid, here, ("columns",))
        a = told.weights(here, tile)
        used = (a if tile.keep is None else a * tile.keep).astype(arrays.v.dtype)
        if dp is None:
            dv = added(here, carry["dv"], used, here.refs["do"])
            ds, *operands = tile.back(a * told.slopes(here, tile, told.product(here)))
            found, ds = _summed(carry, operands), ds.astype(arrays.q.dtype)
        else:
            ds, *operands = tile.back(a * told.slopes(here, tile, dp))
            found, ds = _summed(carry, operands), ds.astype(arrays.q.dtype)
            dv = added(here, carry["dv"], used, here.refs["do"])
        return found | {"dv": dv, "dk": added(here, carry["dk"], ds, here.refs["q"])}

    def finish(here: Visit, carry: Carry) -> None:
        put(grid, here, "dk", carry["dk"] * plan.scale)
        for name in outputs:
            if name != "dk":
                put(grid, here, name, carry[name])

    more = {"v": Input(arrays.v, 1, True), "do": Input(given.o, 0, True), **told.inputs}
    found = call("attention_columns", grid, more, outputs, start, step, finish, told.whole)
    dk, dv = (found[name].reshape(batch, groups, heads // groups, length, -1).sum(axis=2) for name in ("dk", "dv"))
    changes = [(place.at, found[f"operand_{i}"]) for i, place in enumerate(moved)]
    return dk, dv, placed(changes, arrays.packs.columns_real, 2)
