"""The forward kernel for Mosaic GPU, and the one for what is summed by columns once every row's sum is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from positionbias.kernels.gpu import STRIP, zeros
from positionbias.kernels.softmax_attention.fused import Arrays, Outputs, Plan, Walks
from positionbias.kernels.softmax_attention.gpu_grid import (
    Carry,
    Grid,
    Input,
    Visit,
    added,
    along,
    call,
    halvings,
    made,
    put,
    shaped,
)
from positionbias.kernels.softmax_attention.problem import NOTHING_SEEN
from positionbias.kernels.softmax_attention.tiles import FLOOR, weights


def forward(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks) -> Outputs:
    """See `Kernels.forward`."""
    (batch, heads, rows, _), size = arrays.q.shape, arrays.v.shape[3]
    entropy, place = (name in plan.stats for name in ("entropy", "mean_position"))
    # Of more than this, the registers do not hold wide steps: compiled for sm_90a, they spill.
    large, more = max(arrays.q.shape[3], size) > STRIP, plan.rate is not None or entropy or place
    light = not (plan.score or more or large) and len(plan.places_allowed) <= 2
    width = _width(plan, plan.blocks[1]) if light else STRIP >> (halvings(plan) + (large and more) > 1)
    grid = Grid(plan, arrays, walks.by_rows, 0, width, interpret)
    kinds = ["lse"] * plan.normalise + ["entropy"] * entropy + ["mean_position"] * place
    outputs = {"o": jax.ShapeDtypeStruct((batch, heads, rows, size), arrays.q.dtype)}
    outputs |= {name: shaped((batch, heads, rows)) for name in kinds}
    sums = ["total"] * plan.normalise + ["scores"] * entropy + ["places"] * place

    def start() -> Carry:
        carry = {"o": zeros(STRIP, size), **{name: zeros(STRIP) for name in sums}}
        return carry | ({"top": zeros(STRIP, value=FLOOR)} if plan.normalise else {})

    def step(here: Visit, carry: Carry) -> Carry:
        tile, carry = made(grid, here), dict(carry)
        a = weights(tile.s, tile.allowed, None) if not plan.normalise else None
        if a is None:
            shut = tile.s if tile.allowed is None else jnp.where(tile.allowed, tile.s, FLOOR)
            top = jnp.maximum(carry["top"], jnp.max(shut, axis=1))
            fade = jnp.exp(carry["top"] - top)
            a = weights(tile.s, tile.allowed, grid.spread(top))
            carry |= {name: carry[name] * fade for name in sums}
            carry |= {"top": top, "o": carry["o"] * grid.spread(fade, 0, (STRIP, size))}
            carry["total"] += jnp.sum(a, axis=1)
        if entropy:
            carry["scores"] += jnp.sum(a * tile.seen, axis=1)
        if place:
            carry["places"] += jnp.sum(a * tile.key.astype(jnp.float32), axis=1)
        used = a if tile.keep is None else a * tile.keep
        carry["o"] = added(here, carry["o"], used.astype(arrays.v.dtype), here.refs["v"])
        return carry

    def finish(here: Visit, carry: Carry) -> None:
        if not plan.normalise:
            put(grid, here, "o", carry["o"])
            return
        seen = carry["total"] > 0
        total = jnp.where(seen, carry["total"], 1.0)
        put(grid, here, "o", carry["o"] / grid.spread(total, 0, (STRIP, size)))
        lse = jnp.where(seen, carry["top"] + jnp.log(total), NOTHING_SEEN)
        put(grid, here, "lse", lse)
        if entropy:
            put(grid, here, "entropy", jnp.where(seen, lse - carry["scores"] / total, 0.0))
        if place:
            put(grid, here, "mean_position", carry["places"] / total)

    found = call("attention_forward", grid, {"v": Input(arrays.v, 1, True)}, outputs, start, step, finish)
    lse = found.get("lse")
    received, mass = None, None
    if "received" in plan.stats or "block_mass" in plan.stats:
        received, mass = _by_columns(interpret, plan, arrays, walks, lse)
    return Outputs(found["o"], lse, found.get("entropy"), found.get("mean_position"), received, mass)


def _width(plan: Plan, block: int) -> int:
    """Of a step that is as wide as pays."""
    if halvings(plan) > 1:
        return STRIP // 2
    return 2 * STRIP if block % (2 * STRIP) == 0 else STRIP


def _by_columns(
    interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, lse: jax.Array | None
) -> tuple[jax.Array | None, jax.Array | None]:
    """Attention received by each key, and the mass of each tile, as far as they are asked for."""
    grid = Grid(plan, arrays, walks.by_columns, 1, _width(plan, plan.blocks[0]), interpret)
    batch, heads, rows, columns = *arrays.q.shape[:2], *grid.sizes
    tiles = rows // plan.blocks[0], columns // plan.blocks[1]
    outputs = {"received": shaped((batch, heads, columns))} if "received" in plan.stats else {}
    if "block_mass" in plan.stats:  # of each key: no sum over warpgroups in the kernel
        outputs["mass"] = shaped((batch, heads, tiles[0], columns))

    def step(here: Visit, carry: Carry) -> Carry:
        tile = made(grid, here)
        found = jnp.sum(weights(tile.s, tile.allowed, None if lse is None else along(grid, here, "lse", 0)), axis=1)
        if "mass" in carry:
            carry = carry | {"mass": carry["mass"] * jnp.where(here.fresh, 0.0, 1.0) + found}
            put(grid, here, "mass", carry["mass"], here.tile[0])
        return carry | ({"received": carry["received"] + found} if "received" in carry else {})

    def finish(here: Visit, carry: Carry) -> None:
        if "received" in carry:
            put(grid, here, "received", carry["received"])

    more = {} if lse is None else {"lse": Input(lse[:, :, None], 0)}
    found = call(
        "attention_received", grid, more, outputs, lambda: {name: zeros(STRIP) for name in outputs}, step, finish
    )
    mass = found.get("mass")
    if mass is not None:  # nothing has been written for the tiles that are skipped
        count, entries = walks.by_columns
        visited = (entries[..., None] >> 1) == jnp.arange(tiles[0])
        visited &= (jnp.arange(entries.shape[-1]) < count[..., None])[..., None]
        parted = mass.reshape(*mass.shape[:3], tiles[1], plan.blocks[1])
        mass = jnp.sum(jnp.where(jnp.any(visited, axis=3).swapaxes(2, 3)[..., None], parted, 0.0), axis=-1)
    return found.get("received"), mass
