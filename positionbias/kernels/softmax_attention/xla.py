"""Attention by XLA, all rows at once: any rule, any type, any platform; gradients of every order are those of jax."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Mapped, largest
from positionbias.kernels.differences import at_rows, by_difference
from positionbias.kernels.rules import Rule
from positionbias.kernels.softmax_attention.problem import NOTHING_SEEN, Problem, Stats
from positionbias.kernels.softmax_attention.tiles import finite, kept, weights

MOST_KNOWN = 2**20  # pairs of a mask that are kept with a program, a byte each

Operands = tuple[tuple[Any, ...], ...]  # of the mask and of the score, each [B|1, N|1, T|1, S|1] or by difference


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys that rows are computed against: `count` from `first` on, which may be traced."""

    first: Any
    count: int

    def of(self, x: Any, axis: int) -> Any:
        """Those of an array; all of one that has a single one for all keys."""
        if x.shape[axis] == 1:
            return x
        if isinstance(self.first, int):
            return jax.lax.slice_in_dim(jnp.asarray(x), self.first, self.first + self.count, axis=axis)
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), self.first, self.count, axis=axis)

    def add(self, total: jax.Array, change: jax.Array, axis: int) -> jax.Array:
        """An array with what changes for these keys added, or for the single one."""
        if total.shape[axis] == 1:
            return total + change
        return jax.lax.dynamic_update_slice_in_dim(total, self.of(total, axis) + change, self.first, axis=axis)

    @property
    def places(self) -> Int[Mapped, "S"]:
        """Their indices."""
        return self.first + np.arange(self.count, dtype=np.int32)


def dense(problem: Problem) -> tuple[Float[jax.Array, "B T N K"], Stats]:
    """All rows at once."""
    _, rows, columns, _, _ = problem.sizes
    told = problem.pairs() if problem.pairs is not None and rows * columns <= MOST_KNOWN else None
    if isinstance(told, np.ndarray):
        # What a mask says of tokens that are known is a constant: XLA would compute it anew in every call.
        problem = dataclasses.replace(problem, allowed=Rule.constant(told.reshape(-1, 1, rows, columns)))
    return rows_against(problem, problem.q, operands_of(problem), 0, Keys(0, problem.sizes[2]), ragged=False)


def operands_of(problem: Problem) -> Operands:
    """Of the mask, and of the score."""
    return tuple(() if rule is None else rule.operands for rule in (problem.allowed, problem.score))


def spread_out(problem: Problem, operands: tuple[Any, ...], start: Any, rows: int, keys: Keys) -> tuple[Any, ...]:
    """Operands of so many rows from row `start` on, where those by difference have become matrices."""
    length = problem.sizes[1]
    return tuple(at_rows(x, length, start, rows, keys.first, keys.count) if by_difference(x) else x for x in operands)


def rows_against(
    problem: Problem, q: jax.Array, operands: Operands, start: Any, keys: Keys, ragged: bool
) -> tuple[jax.Array, Stats]:
    """Outputs and statistics of the rows `q`, from row `start` on, against `keys`, which `problem` has alone.

    Rows from T on are none if `ragged`.
    """
    masks, score = (spread_out(problem, group, start, q.shape[1], keys) for group in operands)
    scores = scored(problem, q, problem.k, score)
    allowed = allowed_pairs(problem, masks, start, q.shape[1], ragged)
    lse = None
    if problem.normalise:
        pattern, lse = masked_softmax(scores, allowed)
    else:
        pattern = weights(scores, allowed, None)
    stats = _stats(problem, pattern, scores, allowed, lse, keys.places)
    keep = keeps(problem, start, q.shape[1], keys)
    pattern = pattern if keep is None else pattern * keep
    return mixed(pattern.astype(problem.v.dtype), problem.v), stats


def masked_softmax(
    scores: Float[jax.Array, "... S"], allowed: Bool[jax.Array, "..."] | None
) -> tuple[Float[jax.Array, "... S"], Float[jax.Array, "..."]]:
    """Softmax over the allowed entries of the last axis, None for all, and the log of the sum of their exponentials.

    A row with none allowed is zero, and so is its gradient.
    """
    floor = float(jnp.finfo(scores.dtype).min)  # not -infinity: a row with none allowed must give 0, not 0/0
    shut = scores if allowed is None else jnp.where(allowed, scores, floor)
    # Above the floor also where nothing is seen, so that exp(floor - top) is 0 and needs no second choice.
    top = jnp.maximum(largest(shut), floor / 2)
    raised = jnp.exp(shut - top)
    total = jnp.sum(raised, axis=-1, keepdims=True)
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    return raised / total, jnp.where(seen, top + jnp.log(total), NOTHING_SEEN)[..., 0]


def scored(problem: Problem, q: jax.Array, k: jax.Array, operands: tuple[Any, ...]) -> Float[jax.Array, "B N T S"]:
    """The scores of some rows and keys."""
    return ruled(problem, products(q, k), operands)


def ruled(problem: Problem, found: Float[jax.Array, "B N T S"], operands: tuple[Any, ...]) -> jax.Array:
    """The scores that products of queries and keys become."""
    scores = found * jnp.asarray(problem.scale, problem.score_dtype)
    if problem.score is None:
        return scores
    return jnp.broadcast_to(problem.score(operands, scores), scores.shape)


def allowed_pairs(
    problem: Problem, operands: tuple[Any, ...], start: Any, rows: int, ragged: bool
) -> Bool[jax.Array, "..."] | None:
    """Which keys each of so many rows sees, from row `start` on; None where all see all."""
    allowed = None if problem.allowed is None else jnp.asarray(problem.allowed(operands))
    if not ragged:
        return allowed
    inside = start + jnp.arange(rows, dtype=jnp.int32)[:, None] < problem.sizes[1]
    return inside if allowed is None else allowed & inside


def keeps(problem: Problem, start: Any, rows: int, keys: Keys) -> Float[jax.Array, "B N T S"] | None:
    """What dropout multiplies weights by."""
    if problem.dropout is None:
        return None
    batch, heads = (np.arange(n, dtype=np.int32) for n in (problem.sizes[0], problem.sizes[3]))
    row = start + jnp.arange(rows, dtype=jnp.int32)
    places = batch[:, None, None, None], heads[:, None, None], row[:, None], keys.places
    return kept(problem.dropout.seed, problem.dropout.rate, *places)


def products(q: Float[jax.Array, "B T N H"], k: Float[jax.Array, "B S G H"]) -> Float[jax.Array, "B N T S"]:
    """q . k, at least float32."""
    kind, groups = jnp.promote_types(q.dtype, jnp.float32), k.shape[2]
    if groups == q.shape[2]:
        return jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=kind)
    grouped = q.reshape(*q.shape[:2], groups, -1, q.shape[-1])
    found = jnp.einsum("BTGRH,BSGH->BGRTS", grouped, k, preferred_element_type=kind)
    return found.reshape(found.shape[0], -1, *found.shape[3:])


def mixed(pattern: Float[jax.Array, "B N T S"], v: Float[jax.Array, "B S G K"]) -> Float[jax.Array, "B T N K"]:
    """Values weighed by a pattern."""
    groups = v.shape[2]
    if groups == pattern.shape[1]:
        # Not an einsum, which puts the values first: XLA on CPUs then transposes the pattern.
        return jax.lax.dot_general(pattern, v, (((3,), (1,)), ((0, 1), (0, 2)))).transpose(0, 2, 1, 3)
    grouped = pattern.reshape(pattern.shape[0], groups, -1, *pattern.shape[2:])
    found = jnp.einsum("BGRTS,BSGK->BTGRK", grouped, v)
    return found.reshape(*found.shape[:2], -1, found.shape[-1])


def by_keys(
    rows: Float[jax.Array, "B T N H"], pairs: Float[jax.Array, "B N T S"], groups: int
) -> Float[jax.Array, "B S G H"]:
    """The sum over rows of each, times what it has of each key: the gradients of keys and of values.

    Written with the rows first: the other way around, as jax differentiates, XLA on CPUs transposes the pairs.
    """
    kind = jnp.promote_types(rows.dtype, pairs.dtype)
    sharing = rows.shape[2] // groups  # heads of one key
    grouped = rows.astype(kind).reshape(*rows.shape[:2], groups, sharing, rows.shape[3])
    shared = pairs.astype(kind).reshape(len(pairs), groups, sharing, *pairs.shape[2:])
    return jax.lax.dot_general(grouped, shared, (((3, 1), (2, 3)), ((0, 2), (0, 1)))).transpose(0, 3, 1, 2)


def _stats(
    problem: Problem, pattern: jax.Array, scores: jax.Array, allowed: Any, lse: jax.Array | None, place: Any
) -> Stats:
    asked = problem.stats
    found: dict[str, jax.Array] = {}
    if "lse" in asked and lse is not None:
        found["lse"] = lse
    if "received" in asked:
        found["received"] = jnp.sum(pattern, axis=-2)
    if "entropy" in asked and lse is not None:
        mean = jnp.sum(pattern * finite(scores, allowed), axis=-1)
        found["entropy"] = jnp.where(lse > NOTHING_SEEN, lse - mean, 0.0)
    if "mean_position" in asked:
        found["mean_position"] = jnp.sum(pattern * jnp.asarray(place, pattern.dtype), axis=-1)
    if "block_mass" in asked:
        (rows, columns), sizes = pattern.shape[-2:], problem.block_sizes
        padding = [(0, -rows % sizes[0]), (0, -columns % sizes[1])]
        padded = jnp.pad(pattern, [(0, 0), (0, 0), *padding])
        tiled = padded.reshape(*padded.shape[:2], -1, sizes[0], padded.shape[3] // sizes[1], sizes[1])
        found["block_mass"] = jnp.sum(tiled, axis=(3, 5))
    return Stats(**found)
