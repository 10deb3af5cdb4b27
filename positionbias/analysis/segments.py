"""What analyses of segments share: which rows are of which segment, what answers need, and how two things go together.

Segments are those that the task declares in `tokens.segment`, from 1. A task that declares none is cut into
eight blocks, or as many as there are rows, whose lengths differ by one at most: the rows of its context, or all where
these are fewer than two.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.analysis.base import Subject
from positionbias.arrays import Bool, Float, Int
from positionbias.models import edits
from positionbias.spec import ConfigError, canonical, require
from positionbias.tasks.base import Batch, world_of
from positionbias.tokens import Tokens

BLOCKS = 8  # of a task without segments
LOOKED_AT = 64  # items that show which roles there are
CONSTANT = 1e-4  # of its root mean square: what varies less is rounding


def _blocks(subject: Subject) -> Int[np.ndarray, "T"]:
    """The block of every row from 1, 0 behind the context: the segments of a task that declares none."""
    task, length = subject.run.task, subject.run.task.length(subject.condition)
    context = task.context_length(subject.condition)
    rows = context if context >= 2 else length
    return np.where(np.arange(length) < rows, 1 + np.arange(length) * min(BLOCKS, rows) // rows, 0)


def count(subject: Subject) -> int:
    """G, how many segments every item has."""
    return subject.run.task.segments(subject.condition) or int(_blocks(subject).max())


def numbers(subject: Subject, tokens: Tokens, items: int) -> Int[jax.Array, "B T"]:
    """The segment of every row, from 1; 0 for what is of none."""
    told = subject.run.task.segments(subject.condition)
    found = jnp.where(jnp.asarray(tokens.valid), jnp.asarray(tokens.segment if told else _blocks(subject)), 0)
    return jnp.broadcast_to(found, (items, found.shape[-1]))


def parts(subject: Subject, batch: Batch) -> Float[jax.Array, "B T P"]:
    """1 for the part that a row is of, P = G + 1: the segments, then what is of none behind them all, the question.

    Other rows that are of no segment, in front or between, are of no part.
    """
    segment, many = numbers(subject, batch.tokens, len(batch.query)), count(subject)
    index = jnp.arange(segment.shape[-1])
    last = jnp.max(jnp.where(segment > 0, index, -1), axis=-1, keepdims=True)
    behind = (segment == 0) & (index > last) & jnp.asarray(batch.tokens.valid)
    part = jnp.where(behind, many + 1, segment)
    return (part[..., None] == 1 + jnp.arange(many + 1)).astype(jnp.float32)


def roles(subject: Subject) -> int:
    """How many roles rows have, numbered from 0; where items differ in them, those that some items show."""
    task, condition = subject.run.task, subject.condition
    if task.shared_tokens:
        return int(np.max(task.tokens(condition).role)) + 1
    with jax.ensure_compile_time_eval():  # as it is a size of arrays
        key = jax.random.key(0)
        found = jax.jit(lambda key, world: task.batch(key, condition, LOOKED_AT, world))(key, world_of(task, key))
        return int(jnp.max(found.tokens.role)) + 1


def of_roles(subject: Subject, batch: Batch) -> Float[jax.Array, "B T U"]:
    """1 for the role of a row, U of them; what is hidden has none."""
    tokens = batch.tokens
    found = (jnp.asarray(tokens.role)[..., None] == jnp.arange(roles(subject))) & jnp.asarray(tokens.valid)[..., None]
    return jnp.broadcast_to(found, (len(batch.query), *found.shape[-2:])).astype(jnp.float32)


def grouped(
    attention: Float[jax.Array, "... B N T S"], of: Float[jax.Array, "B T G"], to: Float[jax.Array, "B S H"]
) -> Float[jax.Array, "... B N G H"]:
    """The attention from a row of one group to all rows of another: a mean over rows, a sum over columns.

    0 where a group has no rows.
    """
    share = of / jnp.maximum(jnp.sum(of, axis=1, keepdims=True), 1)
    return jnp.einsum("...BNTS,BTG,BSH->...BNGH", attention, share, to, precision="highest")


def context_rows(subject: Subject) -> Bool[jax.Array, "T"]:
    """The rows of the context, 0 to C - 1."""
    task = subject.run.task
    return jnp.arange(task.length(subject.condition)) < task.context_length(subject.condition)


def evidence_rows(batch: Batch) -> Bool[jax.Array, "B A T"]:
    """The rows that each answer needs."""
    index = jnp.arange(batch.weights.shape[-1])
    return jnp.any(batch.evidence[..., None] == index, axis=-2)


def gold(subject: Subject, batch: Batch) -> tuple[Bool[jax.Array, "B A T"], Bool[jax.Array, "B A T"]]:
    """The rows of the segments that hold an answer's evidence, and those of as many others, none where there are none.

    The others are those next in number that hold none, behind the last the first. Evidence of no segment stands alone.
    """
    inside = parts(subject, batch)[..., :-1]
    needed = evidence_rows(batch)
    mine = jnp.einsum("BAT,BTG->BAG", needed.astype(jnp.float32), inside) > 0
    other = jnp.zeros_like(mine)

    def following(taken: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        """One more of the others, for the segment `at` where it is a gold one."""
        free = ~mine & ~taken
        places = jnp.arange(free.shape[-1])
        ahead = jnp.where(free, (places - at) % free.shape[-1], free.shape[-1])
        chosen = (jnp.argmin(ahead, axis=-1)[..., None] == places) & free
        return taken | (chosen & mine[..., at][..., None]), None

    other, _ = jax.lax.scan(following, other, jnp.arange(mine.shape[-1]))
    rows = [jnp.einsum("BAG,BTG->BAT", x.astype(jnp.float32), inside) > 0 for x in (mine, other)]
    return rows[0] | needed, rows[1]


def asked(pattern: Float[jax.Array, "... B N T S"], rows: Int[jax.Array, "B A"]) -> Float[jax.Array, "... B N A S"]:
    """The rows of attention that answer."""
    at = rows[:, None, :, None].reshape(*[1] * (pattern.ndim - 4), len(rows), 1, -1, 1)
    return jnp.take_along_axis(pattern, at, axis=-2)


def columns_at(rows: Int[jax.Array, "B A"], columns: Bool[jax.Array, "B A S"]) -> Bool[jax.Array, "B T S"]:
    """The columns of each answer at the row that answers, none at the others."""
    at = rows[..., None] == jnp.arange(columns.shape[-1])
    return jnp.einsum("BAT,BAS->BTS", at.astype(jnp.float32), columns.astype(jnp.float32)) > 0


def correlation(x: Float[jax.Array, "M ..."], y: Float[jax.Array, "M"]) -> Float[jax.Array, "..."]:
    """Pearson's correlation over the first axis; 0 where one of the two is the same throughout."""
    y = y.reshape(-1, *[1] * (x.ndim - 1))
    dx, dy = x - jnp.mean(x, axis=0), y - jnp.mean(y, axis=0)
    sizes = [jnp.sqrt(jnp.mean(jnp.square(d), axis=0)) for d in (dx, dy)]
    varies = [
        size > CONSTANT * jnp.sqrt(jnp.mean(jnp.square(z), axis=0)) for size, z in zip(sizes, (x, y), strict=True)
    ]
    told = varies[0] & varies[1]
    return jnp.where(told, jnp.mean(dx * dy, axis=0) / jnp.where(told, sizes[0] * sizes[1], 1.0), 0.0)


def reweighted(columns: Bool[jax.Array, "B T S"], by: Any, *, heads: Any = None) -> edits.Edit:
    """Attention to `columns` times `by`, and rows brought back to the sums they had: an edit of a `pattern`.

    A row that attends to nothing else is left nothing by 0.
    """

    def change(was: jax.Array) -> jax.Array:
        new = jnp.where(columns[:, None], by * was, was)
        total = jnp.sum(new, axis=-1, keepdims=True)
        return new * jnp.sum(was, axis=-1, keepdims=True) / jnp.where(total == 0, 1.0, total)

    return edits.Edit(change, heads, None, ("pattern",))


def check_items(subject: Subject) -> None:
    """Raise ConfigError where there is one item, of which nothing can be held against that of another."""
    require(subject.items >= 2, "items", subject.items, "2 or more, as items are compared")


def check_segments(subject: Subject, asks: object) -> None:
    """Raise ConfigError where there are fewer than two segments to compare."""
    found = count(subject)
    if found < 2:
        raise ConfigError(
            f"--analyses: {canonical(asks)} compares segments, of which the task {canonical(subject.run.task)} has"
            f" {found} in condition {subject.condition.name}; allowed: from 2."
        )


def check_context(subject: Subject, asks: object) -> None:
    """Raise ConfigError where there is no context, or nothing beside it."""
    task = subject.run.task
    rows, length = task.context_length(subject.condition), task.length(subject.condition)
    if not 0 < rows < length:
        raise ConfigError(
            f"--analyses: {canonical(asks)} holds a context against what is asked of it, but the context of the task"
            f" {canonical(task)} is {rows} of {length} rows; allowed: from 1 to {length - 1}."
        )
