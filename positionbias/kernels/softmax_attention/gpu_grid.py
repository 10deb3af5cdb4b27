"""What the Mosaic GPU kernels share: the grid, what is copied for each step, and the tile of a step.

A block of threads handles a strip of queries (or of keys), 64 for each of its warpgroups that compute. One more
warpgroup copies the keys (or queries) of the tiles on the strip's list, a few steps ahead. Every tile has the strip
along its rows: where the strip is of keys, it lies the other way round, [keys, queries].
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from positionbias.kernels.differences import diagonal
from positionbias.kernels.gpu import AHEAD, COPYING, STRIP, flipped, interpreted, matmul, plgpu, stored
from positionbias.kernels.softmax_attention.fused import Arrays, Plan
from positionbias.kernels.softmax_attention.operands import Place
from positionbias.kernels.softmax_attention.tiles import finite, kept

NARROWEST = 16  # step: a matrix product sums over that many at once
SHORT = 5  # primitives of a score, such as a slope times a distance, that need no narrower steps
# Primitives that take many instructions, in themselves or in their derivatives; and those with branches for each entry.
LONG = frozenset({"div", "exp", "exp2", "log", "logistic", "rem", "rsqrt", "sqrt", "tanh"})
BRANCHING = frozenset({"cos", "sin"})
Carry = dict[str, jax.Array]


class Input(NamedTuple):
    """What a kernel reads along one side of its tiles: a matrix [b, n, L, H], or vectors [b, n, R, L]."""

    array: jax.Array
    side: int  # 0 for queries, 1 for keys
    matrix: bool = False


class Visit(NamedTuple):
    """Where a step is, and what it reads. Indices are those of the first entry."""

    batch: jax.Array
    head: jax.Array
    strip: jax.Array
    other: jax.Array
    tile: tuple[Any, Any]  # row and column of tiles
    fresh: jax.Array  # whether the tile has not been visited in the step before
    refs: dict[str, Any]  # matrices and moving vectors are those of the step, all else is whole
    spare: Any  # shared memory for a left operand, for the interpreter only


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The steps of a kernel: those of a strip of queries are parts of the row of tiles that it lies in."""

    plan: Plan
    arrays: Arrays
    walk: tuple[jax.Array, jax.Array]
    side: int  # which a strip is of
    width: int  # of the part of a tile that a step handles
    interpret: Any
    most: int = 2  # warpgroups that compute; one alone has more registers a thread, 255

    @property
    def groups(self) -> int:
        """Warpgroups that compute."""
        return self.most if self.plan.blocks[self.side] % (self.most * STRIP) == 0 else 1

    @property
    def sizes(self) -> tuple[int, int]:
        """Padded T and S."""
        return self.arrays.q.shape[2], self.arrays.k.shape[2]

    @property
    def tile(self) -> tuple[int, int]:
        """Of a warpgroup's step."""
        return STRIP, self.width

    def lead(self, array: Any, batch: Any, head: Any) -> tuple[Any, Any]:
        """Which of [b, n, ...] a query head of an example reads."""
        b, n = array.shape[:2]
        return (batch if b > 1 else 0), (lax.div(head, jnp.int32(self.arrays.q.shape[1] // n)) if n > 1 else 0)

    @property
    def transforms(self) -> tuple[Any, ...]:
        """How matrices lie in shared memory, all the same: in tiles of 8 rows that are as long as fits all of them."""
        longest = math.gcd(STRIP, self.width, self.arrays.q.shape[3], self.arrays.v.shape[3])
        bytes_each = self.arrays.q.dtype.itemsize
        return plgpu.TilingTransform((8, longest)), plgpu.SwizzleTransform(longest * bytes_each)

    def spread(self, vector: jax.Array, axis: int = 0, shape: tuple[int, ...] | None = None) -> jax.Array:
        """A vector along an axis of a tile, in every row or column of it."""
        return lax.broadcast_in_dim(vector, shape or self.tile, (axis,))


def halvings(plan: Plan) -> int:
    """How often to halve the steps for what the score takes: compiled for sm_90a, wider ones spill.

    What a long computation keeps of an entry, until its gradient has gone back through it, is in registers for all
    entries of a step at once. Branches keep even more there, since nothing is moved over them.
    """
    if plan.score is None:
        return 0
    return 2 if plan.score.uses & BRANCHING else int(bool(plan.score.uses & LONG) or plan.score.length > SHORT)


def call(
    name: str,
    grid: Grid,
    more: dict[str, Input],
    outputs: dict[str, jax.ShapeDtypeStruct],
    start: Callable[[], Carry],
    step: Callable[[Visit, Carry], Carry],
    finish: Callable[[Visit, Carry], None],
    far: dict[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Run a kernel: `start` a strip's sums, add each `step`, and have `finish` write to the refs of the outputs."""
    arrays, packs, side, groups = grid.arrays, grid.arrays.packs, grid.side, grid.groups
    inputs = {"q": Input(arrays.q, 0, True), "k": Input(arrays.k, 1, True), **more}
    for axis, at in (("rows", 0), ("columns", 1)):
        for kind in ("real", "whole"):
            pack = getattr(packs, f"{axis}_{kind}")
            if pack is not None:
                inputs[f"{axis}_{kind}"] = Input(pack.swapaxes(2, 3) if at == 0 else pack, at)
    whole = {"count": grid.walk[0], "entries": grid.walk[1], **(far or {})}
    for kind in ("real", "whole"):
        if getattr(packs, f"scalars_{kind}") is not None:
            whole[f"scalars_{kind}"] = getattr(packs, f"scalars_{kind}")
    for group in ("dense", "diagonal"):  # read where they are: as copies they would fill the shared memory
        for i, x in enumerate(getattr(packs, group)):
            x = x.astype(jnp.int32) if x.dtype == jnp.int8 else x
            whole[f"{group}_{i}"] = x if side == 0 else x.swapaxes(-1, -2)
    if arrays.seed is not None:
        whole["seed"] = arrays.seed.reshape(1)
    still = [name for name, one in inputs.items() if one.side == side and one.matrix]
    moving = [name for name, one in inputs.items() if one.side != side]
    dtype, transforms = arrays.q.dtype, grid.transforms

    def kernel(*refs: Any) -> None:
        count = len(inputs) + len(whole) + len(outputs)
        named = dict(zip([*inputs, *whole, *outputs], refs[:count], strict=True))
        held = dict(zip(still, refs[count:], strict=False))
        barriers = dict(zip(still, refs[count + len(still) :], strict=False))
        batch, head, place, group = (lax.axis_index(name) for name in ("batch", "head", "place", "group"))
        row = lax.div(place * (STRIP * groups), jnp.int32(grid.plan.blocks[side]))
        cut = grid.plan.blocks[1 - side] // grid.width
        b, n = grid.lead(grid.walk[0], batch, head)
        strip = (place * groups + group) * STRIP

        def tile(at: Any) -> jax.Array:
            return lax.shift_right_arithmetic(named["entries"][b, n, row, at], jnp.int32(1))

        def block(at: Any, part: Any) -> jax.Array:
            return tile(at) * cut + part

        def visit(found: dict[str, Any], other: Any, to: Any, fresh: Any) -> Visit:
            known = named | {name: ref.at[group] for name, ref in held.items()} | found
            pair = (row, to) if side == 0 else (to, row)
            spare = refs[-1].at[group] if grid.interpret is not None else None
            return Visit(batch, head, strip, other, pair, fresh, known, spare)

        def stepped(indices: Any, *given: Any) -> Carry:
            *found, carry = given
            at, part = indices
            here = visit(dict(zip(moving, found, strict=True)), block(at, part) * grid.width, tile(at), part == 0)
            return step(here, carry)

        def computed(pipeline: Any) -> None:
            for name in still:
                source = named[name].at[(*grid.lead(inputs[name].array, batch, head), pl.ds(strip, STRIP))]
                plgpu.copy_gmem_to_smem(source, held[name].at[group], barriers[name].at[group])
            for name in still:
                plgpu.barrier_wait(barriers[name].at[group])
            finish(visit({}, jnp.int32(0), jnp.int32(0), jnp.bool_(True)), pipeline(start()))

        specs = []
        for name in moving:
            size = inputs[name].array.shape
            if inputs[name].matrix:
                shape = (grid.width, size[3])
                specs.append(plgpu.BlockSpec(shape, lambda at, part: (block(at, part), 0), transforms=transforms))
            else:
                specs.append(plgpu.BlockSpec((size[2], grid.width), lambda at, part: (0, block(at, part))))
        plgpu.emit_pipeline_warp_specialized(
            stepped,
            grid=(named["count"][b, n, row], cut),
            in_specs=specs,
            max_concurrent_steps=AHEAD,
            wg_axis="group",
            num_compute_wgs=groups,
            memory_registers=COPYING,
            compute_context=computed,
        )(*(named[name].at[grid.lead(inputs[name].array, batch, head)] for name in moving))

    kernel.__name__ = name
    scratch = [plgpu.SMEM((groups, STRIP, inputs[name].array.shape[3]), dtype, transforms=transforms) for name in still]
    scratch += [plgpu.Barrier(num_barriers=groups) for _ in still]
    if grid.interpret is not None:
        scratch.append(plgpu.SMEM((groups, STRIP, grid.width), dtype, transforms=transforms))
    batch, heads = arrays.q.shape[:2]
    run = plgpu.kernel(
        kernel,
        out_type=list(outputs.values()),
        scratch_types=scratch,
        grid=(heads, grid.sizes[side] // (STRIP * groups), batch),
        grid_names=("head", "place", "batch"),
        num_threads=groups + 1,
        thread_name="group",
    )
    with interpreted(grid.interpret):
        found = run(*(one.array for one in inputs.values()), *whole.values())
    return dict(zip(outputs, found, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """The scores of one tile, and how their gradient goes back."""

    s: jax.Array
    allowed: jax.Array | None
    back: Callable[[jax.Array], Sequence[jax.Array]]  # of the raw scores, and of the operands asked for
    key: jax.Array  # indices
    keep: jax.Array | None

    @property
    def seen(self) -> jax.Array:
        """The scores, finite, and 0 where not allowed."""
        return finite(self.s, self.allowed)


def made(grid: Grid, here: Visit, back_to: tuple[str, ...] = ()) -> Tile:
    """The tile of this step; `back_to` names the groups of operands whose gradients are wanted."""
    plan, mine = grid.plan, "qk"[grid.side]
    raw = matmul(here.refs[mine], flipped(here.refs["kq"[grid.side]]), grid.tile) * plan.scale
    starts = (here.strip, here.other) if grid.side == 0 else (here.other, here.strip)
    index = [
        plgpu.broadcasted_iota(jnp.int32, grid.tile, axis ^ grid.side, layout=plgpu.Layout.WGMMA) + starts[axis]
        for axis in (0, 1)
    ]
    given = [_operand(grid, here, place) for place in plan.places_score]
    moved = [i for i, place in enumerate(plan.places_score) if place.real and place.group in back_to]

    def scored(raw: jax.Array, *changed: jax.Array) -> jax.Array:
        if plan.score is None:
            return raw
        now = list(given)
        for i, x in zip(moved, changed, strict=True):
            now[i] = x
        return jnp.broadcast_to(plan.score(_restored(plan.places_score, now), raw), raw.shape)

    back: Callable[[jax.Array], Sequence[jax.Array]]
    if back_to:
        s, pulled = _plainly(functools.partial(jax.vjp, scored), raw, *(given[i] for i in moved))
        back = functools.partial(_plainly, pulled)
    else:
        s, back = _plainly(scored, raw), lambda ds: [ds]
    allowed = None
    if plan.any_partial:
        if plan.allowed is not None:
            operands = [_operand(grid, here, place) for place in plan.places_allowed]
            found = _plainly(plan.allowed, _restored(plan.places_allowed, operands))
            allowed = jnp.broadcast_to(found, grid.tile)
        for axis in (0, 1):
            if plan.ragged(axis):
                inside = index[axis] < plan.length[axis]
                allowed = inside if allowed is None else allowed & inside
    keep = None
    if plan.rate is not None:
        keep = kept(here.refs["seed"][0], plan.rate, here.batch, here.head, *index)
    return Tile(s, allowed, back, index[1], keep)


def _plainly(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns, by primitives that Mosaic GPU compiles in place of some that it does not."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    variables = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    known: dict[Any, Any] = dict(zip(variables, [*closed.consts, *jax.tree.leaves(args)], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    for eqn in closed.jaxpr.eqns:
        read, name = [value(atom) for atom in eqn.invars], eqn.primitive.name
        if name == "add_any":  # how derivatives add
            found: Any = lax.add(*read)
        elif name == "not" and read[0].dtype == jnp.bool_:
            found = jnp.bitwise_xor(read[0], True)
        elif name == "integer_pow":
            found = _power(read[0], eqn.params["y"])
        else:
            bound = eqn.primitive.get_bind_params(eqn.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)
            found = eqn.primitive.bind(*functions, *read, **params)
        known.update(zip(eqn.outvars, found if eqn.primitive.multiple_results else [found], strict=True))
    return jax.tree.unflatten(jax.tree.structure(shape), [value(atom) for atom in closed.jaxpr.outvars])


def _power(x: jax.Array, y: int) -> jax.Array:
    if y < 0:
        return 1.0 / _power(x, -y)
    if y < 2:
        return x if y else jnp.ones_like(x)
    half = _power(x, y // 2)
    return half * half * x if y % 2 else half * half


def _restored(places: Sequence[Place], tiles: Sequence[jax.Array]) -> list[jax.Array]:
    return [place.restored(tile) for place, tile in zip(places, tiles, strict=True)]


def _operand(grid: Grid, here: Visit, place: Place) -> jax.Array:
    """The tile of an operand, as its pack holds it: whole tiles, since a tile's layout has no axes of size 1."""
    if place.group in ("dense", "diagonal"):
        ref = here.refs[f"{place.group}_{place.at}"]
        at: tuple[Any, ...] = grid.lead(ref, here.batch, here.head)
        mine, other = here.strip, here.other
        if place.group == "diagonal":
            blocks, (row, column) = grid.plan.blocks, here.tile
            at = (*at, diagonal(blocks, grid.plan.tiles, row, column))
            starts = (row * blocks[0], column * blocks[1])
            mine, other = mine - starts[grid.side], other - starts[1 - grid.side]
        at = (*at, pl.ds(mine, STRIP), pl.ds(other, grid.width))
        return plgpu.load(ref.at[at], layout=plgpu.Layout.WGMMA, optimized=False)
    name = f"{place.group}_{'real' if place.real else 'whole'}"
    if place.group == "scalars":
        ref = here.refs[name]
        return jnp.broadcast_to(ref[(*grid.lead(ref, here.batch, here.head), place.at)], grid.tile)
    return along(grid, here, name, 0 if place.group == "rows" else 1, place.at)


def along(grid: Grid, here: Visit, name: str, side: int, at: int = 0) -> jax.Array:
    """One of the vectors that are read along a side, in every row or column of the tile."""
    ref = here.refs[name]
    if side == grid.side:
        ref = ref.at[(*grid.lead(ref, here.batch, here.head), at, pl.ds(here.strip, STRIP))]
        return grid.spread(plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False), 0)
    return grid.spread(plgpu.load(ref.at[at], layout=plgpu.Layout.WGMMA.reduce(0), optimized=False), 1)


def added(here: Visit, total: jax.Array, x: jax.Array, y: Any) -> jax.Array:
    """total + x y, for x in registers and y in shared memory.

    The interpreter has no products from registers and none on top of a sum, so there x goes by shared memory.
    """
    if here.spare is None:
        return pl.run_state(lambda ref: plgpu.wgmma(ref, x, y))(plgpu.ACC.init(total))
    here.spare[...] = x
    plgpu.commit_smem()

    return total + matmul(here.spare, y, total.shape)


def put(grid: Grid, here: Visit, name: str, value: jax.Array, *at: Any) -> None:
    """Write a strip's numbers to [B, N, *at, L] or its matrix to [B, N, L, H]."""
    ref = here.refs[name].at[(here.batch, here.head, *at, pl.ds(here.strip, STRIP))]
    stored(ref, value)


shaped = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
