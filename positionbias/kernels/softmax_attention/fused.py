"""Attention by a fused kernel, forwards and backwards: what the drivers for TPU and GPU share around their kernels.

Arrays are laid out by head, padded to whole tiles, and the gradient is written by hand (see `tiles`). A driver computes
four things on padded arrays: the forward pass, the gradients that are summed along rows, those along columns, and
those of operands that are read by whole tiles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from positionbias.arrays import Float, Int
from positionbias.errors import ConfigError
from positionbias.kernels.rules import Rule
from positionbias.kernels.softmax_attention.block_map import classes, walk
from positionbias.kernels.softmax_attention.operands import Packs, Place, packed, padded
from positionbias.kernels.softmax_attention.problem import NOTHING_SEEN, Problem, Stats

ROWWISE = ("lse", "offset", "entropy", "mean_position")  # what backward kernels read of each row, of `Cotangents`


class Arrays(NamedTuple):
    """What a kernel reads, padded: T and S are multiples of the tile."""

    q: Float[jax.Array, "B N T H"]
    k: Float[jax.Array, "B G S H"]
    v: Float[jax.Array, "B G S K"]
    packs: Packs
    seed: Int[jax.Array, ""] | None


class Walks(NamedTuple):
    """Tiles to visit: for each row of tiles, and for each column; and what each tile is."""

    by_rows: tuple[jax.Array, jax.Array]  # count, entries
    by_columns: tuple[jax.Array, jax.Array]
    classes: Int[jax.Array, "b n P M"]  # of every tile


class Outputs(NamedTuple):
    """Of the forward pass; None for what was not asked."""

    o: Float[jax.Array, "B N T K"]
    lse: Float[jax.Array, "B N T"] | None
    entropy: Float[jax.Array, "B N T"] | None
    mean_position: Float[jax.Array, "B N T"] | None
    received: Float[jax.Array, "B N S"] | None
    block_mass: Float[jax.Array, "B N P M"] | None


class Cotangents(NamedTuple):
    """What a loss says of the outputs, and of each row what the formulas need; None for what does not matter."""

    o: Float[jax.Array, "B N T K"]
    lse: Float[jax.Array, "B N T"] | None  # not a cotangent: the log-sum-exp itself
    offset: Float[jax.Array, "B N T"] | None  # D of `tiles`, as far as it is known
    entropy: Float[jax.Array, "B N T"] | None
    mean_position: Float[jax.Array, "B N T"] | None
    received: Float[jax.Array, "B N S"] | None
    block_mass: Float[jax.Array, "B N P M"] | None

    @property
    def gathers(self) -> bool:
        """Whether a part of D is still to be summed."""
        return self.offset is not None and (self.received is not None or self.block_mass is not None)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All that is static of one fused attention."""

    allowed: Rule | None
    score: Rule | None
    places_allowed: tuple[Place, ...]
    places_score: tuple[Place, ...]
    scale: float
    rate: float | None
    normalise: bool
    stats: tuple[str, ...]
    length: tuple[int, int]  # T and S without padding
    blocks: tuple[int, int]
    any_full: bool
    any_partial: bool

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.length[0] // self.blocks[0]), -(-self.length[1] // self.blocks[1])

    def ragged(self, axis: int) -> bool:
        """Whether rows (0) or columns (1) are padded."""
        return self.length[axis] % self.blocks[axis] > 0


@dataclasses.dataclass(frozen=True, eq=False)
class Kernels:
    """A driver's kernels and its rounding of sizes."""

    forward: Callable[[Plan, Arrays, Walks], Outputs]
    # dq, the part of D that was gathered or None, and gradients of real rows and scalars, [B, N, T, R] each
    rows: Callable[[Plan, Arrays, Walks, Cotangents], tuple[Any, Any, Any, Any]]
    columns: Callable[[Plan, Arrays, Walks, Cotangents], tuple[Any, Any, Any]]  # dk, dv, real columns [B, N, R, S]
    # The gradient of an operand of real numbers that is dense or by difference, of its pack's shape
    pairs: Callable[[Plan, Arrays, Walks, Cotangents, Place], jax.Array]
    head_multiple: int  # head sizes are padded to a multiple of it


def attend(problem: Problem, kernels: Kernels) -> tuple[Float[jax.Array, "B T N K"], Stats]:
    """The attention by these kernels, on tiles of `problem.block_sizes` queries and keys."""
    (_, t, s, _, _), blocks = problem.sizes, problem.block_sizes
    tiles = -(-t // blocks[0]), -(-s // blocks[1])
    rows, columns = tiles[0] * blocks[0], tiles[1] * blocks[1]
    found = classes(problem, blocks)
    walks = [walk(found), walk(found.swapaxes(-1, -2))]
    places_allowed, places_score, packs = packed(problem, blocks, tiles)
    plan = Plan(
        allowed=problem.allowed,
        score=problem.score,
        places_allowed=tuple(places_allowed),
        places_score=tuple(places_score),
        scale=problem.scale,
        rate=None if problem.dropout is None else problem.dropout.rate,
        normalise=problem.normalise,
        stats=problem.stats,
        length=(t, s),
        blocks=blocks,
        any_full=walks[0].any_full,
        any_partial=walks[0].any_partial,
    )

    def laid(x: jax.Array, to: int) -> jax.Array:
        x = padded(jnp.moveaxis(x, 1, 2), 2, to)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[-1] % kernels.head_multiple)))

    q, k, v = laid(problem.q, rows), laid(problem.k, columns), laid(problem.v, columns)
    arrays = Arrays(q, k, v, packs, None if problem.dropout is None else problem.dropout.seed.astype(jnp.int32))
    lists = [(jnp.asarray(one.count), jnp.asarray(one.entries)) for one in walks]
    told = Walks(lists[0], lists[1], jnp.asarray(found).astype(jnp.int32))
    out = _attend(plan, kernels, arrays, told)
    stats = Stats(
        lse=out.lse[..., :t] if "lse" in problem.stats and out.lse is not None else None,
        received=None if out.received is None else out.received[..., :s],
        entropy=None if out.entropy is None else out.entropy[..., :t],
        mean_position=None if out.mean_position is None else out.mean_position[..., :t],
        block_mass=out.block_mass,
    )
    return jnp.moveaxis(out.o[:, :, :t, : problem.v.shape[-1]], 1, 2), stats


def _attend(plan: Plan, kernels: Kernels, arrays: Arrays, walks: Walks) -> Outputs:
    @jax.custom_vjp
    def run(arrays: Arrays, walks: Walks) -> Outputs:
        return kernels.forward(plan, arrays, walks)

    def forward(arrays: Any, walks: Any) -> tuple[Outputs, Any]:
        arrays, walks = jax.tree.map(lambda x: x.value, (arrays, walks), is_leaf=lambda x: hasattr(x, "perturbed"))
        out = _once(functools.partial(kernels.forward, plan))(arrays, walks)
        kept = out._replace(received=None, block_mass=None)
        return out, (arrays, walks, kept)

    def backward(residuals: Any, given: Outputs) -> tuple[Any, Any]:
        arrays, walks, out = residuals
        by: Any = [told(value) for value in given]
        return _once(functools.partial(_gradient, plan, kernels))(arrays, walks, out, Outputs(*by)), None

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run(arrays, walks)


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a gradient, which has none of its own: without a word, jax would not tell what is missing."""
    run = jax.custom_jvp(function)

    @run.defjvp
    def again(primals: Any, tangents: Any) -> Any:
        raise ConfigError(
            "impl: kernels by tiles have no second derivatives; allowed: impl = 'xla_dense' or 'xla_chunked' for these."
        )

    return run


def _gradient(plan: Plan, kernels: Kernels, arrays: Arrays, walks: Walks, out: Outputs, given: Outputs) -> Arrays:
    by = given._asdict()
    do = jnp.zeros(out.o.shape, out.o.dtype) if by["o"] is None else by["o"]
    lse, offset = None, None
    if plan.normalise:
        assert out.lse is not None
        lse = out.lse
        offset = jnp.sum(do.astype(jnp.float32) * out.o.astype(jnp.float32), axis=-1)
        if by["lse"] is not None:
            offset = offset - by["lse"]
        if by["mean_position"] is not None and out.mean_position is not None:
            offset = offset + by["mean_position"] * out.mean_position
        if by["entropy"] is not None and out.entropy is not None:
            seen = out.lse > NOTHING_SEEN
            offset = offset - by["entropy"] * jnp.where(seen, out.lse - out.entropy, 0.0)
    known = Cotangents(do, lse, offset, by["entropy"], by["mean_position"], by["received"], by["block_mass"])
    dq, gathered, drows, dscalars = kernels.rows(plan, arrays, walks, known)
    if gathered is not None:
        assert offset is not None
        known = known._replace(offset=offset + gathered)
    dk, dv, dcolumns = kernels.columns(plan, arrays, walks, known)
    packs = arrays.packs
    if dscalars is not None:
        dscalars = jnp.sum(dscalars, axis=2)
    real = [
        None if pack is None else _shared(jnp.zeros(pack.shape) if change is None else change, pack.shape)
        for pack, change in ((packs.rows_real, drows), (packs.columns_real, dcolumns), (packs.scalars_real, dscalars))
    ]
    alone: dict[str, list[Any]] = {"dense": [None] * len(packs.dense), "diagonal": [None] * len(packs.diagonal)}
    for place in plan.places_score:
        if place.real and place.group in alone:
            alone[place.group][place.at] = kernels.pairs(plan, arrays, walks, known, place)
    whole = (tuple(alone["dense"]), tuple(alone["diagonal"]))
    none: Any = Packs(real[0], real[1], real[2], None, None, None, *whole)
    return Arrays(dq.astype(arrays.q.dtype), dk.astype(arrays.k.dtype), dv.astype(arrays.v.dtype), none, None)


def told(value: Any) -> jax.Array | None:
    """A cotangent, or None for one that is zero."""
    return None if value is None or isinstance(value, jax.custom_derivatives.SymbolicZero) else value


def placed(changes: list[tuple[int, jax.Array]], pack: jax.Array | None, axis: int) -> jax.Array | None:
    """Changes of some operands by their places, [B, N, L] each, as those of the pack, along whose `axis` they lie."""
    if pack is None or not changes:
        return None
    by_place = dict(changes)
    nothing = jnp.zeros_like(changes[0][1])
    count = pack.shape[min(axis, pack.ndim - 1)]  # a pack of scalars has no axis L
    return jnp.stack([by_place.get(i, nothing) for i in range(count)], axis=axis)


def _shared(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The sum over examples or heads that share an operand."""
    axes = tuple(axis for axis in (0, 1) if shape[axis] == 1 and x.shape[axis] > 1)
    return jnp.sum(x, axis=axes, keepdims=True) if axes else x
