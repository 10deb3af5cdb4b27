"""The forward kernel for TPU, and the one for attention received."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from positionbias.kernels.softmax_attention.fused import Arrays, Outputs, Plan, Walks
from positionbias.kernels.softmax_attention.problem import NOTHING_SEEN
from positionbias.kernels.softmax_attention.tiles import FLOOR, weights
from positionbias.kernels.softmax_attention.tpu_grid import (
    PLAIN,
    Grid,
    Refs,
    along_rows,
    call,
    dot,
    lanes,
    made,
    shaped,
    visit_tile,
)


def forward(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks) -> Outputs:
    """See `Kernels.forward`."""
    grid = Grid(plan, arrays, *walks.by_rows, by_rows=True)
    (batch, heads, rows, _), size, (bq, bk) = arrays.q.shape, arrays.v.shape[3], plan.blocks
    tiles = rows // bq, arrays.k.shape[2] // bk
    entropy, place, mass = (name in plan.stats for name in ("entropy", "mean_position", "block_mass"))
    kinds = ["lse"] * plan.normalise + ["entropy"] * entropy + ["mean_position"] * place
    o = shaped(batch, heads, rows, size, dtype=arrays.q.dtype)
    outputs = {"o": (o, grid.rows(o))}
    if kinds:
        rowwise = shaped(batch, heads, rows, len(kinds))
        outputs["told"] = (rowwise, grid.rows(rowwise))
    scratch = {"o": (bq, size), "top": (bq, 1), "total": (bq, 1)}
    scratch |= {"scores": (bq, 1)} if entropy else {}
    scratch |= {"places": (bq, 1)} if place else {}
    if mass:
        scratch["mass"] = (bq, tiles[1])
        masses = shaped(batch, heads, tiles[0], 1, tiles[1])
        outputs["mass"] = (masses, grid.whole(masses))

    def body(refs: Refs, at: Any) -> None:
        step = at[4]

        @pl.when(step == 0)
        def _() -> None:
            for name in scratch:
                refs[f"sum_{name}"][...] = jnp.full(scratch[name], FLOOR if name == "top" else 0.0, jnp.float32)

        def visit(masked: bool) -> None:
            tile = made(grid, refs, at, masked)
            fade: Any = None
            if plan.normalise:
                shut = tile.s if tile.allowed is None else jnp.where(tile.allowed, tile.s, FLOOR)
                top = jnp.maximum(refs["sum_top"][...], jnp.max(shut, axis=1, keepdims=True))
                fade = jnp.exp(refs["sum_top"][...] - top)
                refs["sum_top"][...] = top
                a = weights(tile.s, tile.allowed, top)
            else:
                a = weights(tile.s, tile.allowed, None)

            def add(name: str, more: jax.Array) -> None:
                before = refs[f"sum_{name}"][...]
                refs[f"sum_{name}"][...] = (before if fade is None else before * fade) + more

            used = a if tile.keep is None else a * tile.keep
            v = refs["v"][...]
            add("o", dot(used.astype(v.dtype), v, PLAIN))
            add("total", along_rows(a))
            if entropy:
                add("scores", along_rows(a * tile.seen))
            if place:
                add("places", along_rows(a * tile.key.astype(jnp.float32)))
            if mass:
                lane = jax.lax.broadcasted_iota(jnp.int32, (bq, tiles[1]), 1)
                add("mass", jnp.where(lane == at[3], along_rows(a), 0.0))

        visit_tile(plan, at, visit)

        @pl.when(step == pl.num_programs(3) - 1)
        def _() -> None:
            if not plan.normalise:
                refs["o"][...] = refs["sum_o"][...].astype(refs["o"].dtype)
                if mass:
                    refs["mass"][...] = jnp.sum(refs["sum_mass"][...], axis=0, keepdims=True)
                return
            total = refs["sum_total"][...]
            seen = total > 0
            total = jnp.where(seen, total, 1.0)
            refs["o"][...] = (refs["sum_o"][...] / total).astype(refs["o"].dtype)
            lse = jnp.where(seen, refs["sum_top"][...] + jnp.log(total), NOTHING_SEEN)
            found = {"lse": lse}
            if entropy:
                found["entropy"] = jnp.where(seen, lse - refs["sum_scores"][...] / total, 0.0)
            if place:
                found["mean_position"] = refs["sum_places"][...] / total
            refs["told"][...] = lanes([found[name] for name in kinds])
            if mass:
                refs["mass"][...] = jnp.sum(refs["sum_mass"][...] / total, axis=0, keepdims=True)

    extra = {"v": (arrays.v, grid.keys(arrays.v))}
    found = call(grid, body, extra, outputs, scratch, interpret)
    told = {name: found["told"][..., i] for i, name in enumerate(kinds)}
    received = None
    if "received" in plan.stats:
        received = _received(interpret, plan, arrays, walks, told.get("lse"))
    return Outputs(
        o=found["o"],
        lse=told.get("lse"),
        entropy=told.get("entropy"),
        mean_position=told.get("mean_position"),
        received=received,
        block_mass=found["mass"][:, :, :, 0] if mass else None,
    )


def _received(interpret: Any, plan: Plan, arrays: Arrays, walks: Walks, lse: jax.Array | None) -> jax.Array:
    """Attention received by each key, once the log-sum-exp of each query is known."""
    grid = Grid(plan, arrays, *walks.by_columns, by_rows=False)
    batch, heads, columns, bk = *arrays.q.shape[:2], arrays.k.shape[2], plan.blocks[1]
    shape = shaped(batch, heads, 1, columns)

    def body(refs: Refs, at: Any) -> None:
        step = at[4]

        @pl.when(step == 0)
        def _() -> None:
            refs["sum_a"][...] = jnp.zeros((1, bk), jnp.float32)

        def visit(masked: bool) -> None:
            tile = made(grid, refs, at, masked)
            a = weights(tile.s, tile.allowed, refs["lse"][...] if lse is not None else None)
            refs["sum_a"][...] += jnp.sum(a, axis=0, keepdims=True)

        visit_tile(plan, at, visit)

        @pl.when(step == pl.num_programs(4) - 1)
        def _() -> None:
            refs["received"][...] = refs["sum_a"][...]

    extra = {}
    if lse is not None:
        extra["lse"] = (lse[..., None], grid.rows(lse[..., None]))
    outputs = {"received": (shape, grid.columns(shape))}
    return call(grid, body, extra, outputs, {"a": (1, bk)}, interpret)["received"][:, :, 0]
