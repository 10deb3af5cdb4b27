"""What masks and position schemes know about each token.

Order masks read `index`, where the token is stored; position schemes read `position`, what the model is told.
Keeping the two apart is what lets an intervention move one without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from positionbias.arrays import Int, Mapped
from positionbias.spec import require

# What models, assignments and objectives tell, and no task or stored item: the fields, with their values until then.
UNTOLD = {"context": 0, "time": 0, "spare": -1, "depth": 0, "mode": 0, "hidden": 0, "rank": 0}


class Tokens(NamedTuple):
    """Per-token integers [..., T] that broadcast; any field may carry leading batch and head axes."""

    index: Mapped  # storage order, 0..T-1
    position: Mapped  # what the position scheme sees
    segment: Mapped  # document, list or block the token belongs to
    role: Mapped  # what the token is for, in the task's own numbering
    frame: Mapped  # time step of a group of tokens
    scale: Mapped  # level of a multi-scale token map
    valid: Mapped  # bool; False is padding, never seen and never seeing
    # Those of UNTOLD:
    context: Mapped  # 1 for the context 0..C-1, which an encoder would read
    time: Mapped  # a token's frame, and where it is in none the largest stored before it
    spare: Mapped  # position kept for a row that an architecture adds in front of this token; -1 where none is
    depth: Mapped  # pass of a looped model
    mode: Mapped  # which of two masks `switch` is
    hidden: Mapped  # 1 where an objective hid the input
    rank: Mapped  # place in the order in which an objective has inputs told

    @property
    def length(self) -> int:
        """T."""
        return int(self.index.shape[-1])

    def told_context(self, length: int) -> Tokens:
        """The tokens of a whole sequence with the first `length` stored as the context, and with their `time`."""
        begun = running_most(self.frame * self.valid)
        time = self.frame + begun * (self.frame == 0)
        return self._replace(context=(self.index < length).astype(np.int32), time=time)

    def rows(self) -> Tokens:
        """The fields as queries, [..., T, 1]."""
        return Tokens(*(x[..., :, None] for x in self))

    def columns(self) -> Tokens:
        """The fields as keys, [..., 1, T]."""
        return Tokens(*(x[..., None, :] for x in self))

    def cut(self, start: int, stop: int) -> Tokens:
        """Tokens start..stop-1."""
        return Tokens(*(x[..., start:stop] for x in self))

    def parted(self, at: int, rows: int = 1) -> tuple[Tokens, Tokens, Tokens]:
        """The tokens before row `at`, `rows` new ones to stand there, and the rest, moved on in index and position.

        New ones belong to the context and to no group, are valid, of the time and mode of the row before, and told the
        positions that follow on it, from 0 in front. Where the row at `at` has a `spare` position, one new row is told
        that one, and the positions of others stay.
        """
        edge, step = self.cut(max(at - 1, 0), max(at, 1)), np.arange(rows, dtype=np.int32)
        new = Tokens(*(field * 0 + 0 * step for field in edge))
        new = new._replace(valid=new.valid == 0, context=new.context + 1, mode=new.mode + edge.mode)
        new = new._replace(spare=new.spare - 1, time=new.time + edge.time if at else new.time)
        first = (edge.index + 1, edge.position + 1) if at else (new.index, new.position)
        rest = self.cut(at, self.length)
        spare = rest.spare[..., :1] if rest.length else new.spare[..., :1]
        where = self.position.__array_namespace__().where
        new = new._replace(index=first[0] + step, position=where(spare >= 0, spare, first[1] + step))
        behind = where(spare >= 0, rest.position, rest.position + rows)
        rest = rest._replace(index=rest.index + rows, position=behind, spare=rest.spare * 0 - 1)
        return self.cut(0, at), new, rest

    def sparing(self, at: int, position: Int[Mapped, "... S"]) -> Tokens:
        """The tokens told the `position` of every row of a sequence that has one more, at `at`, whose own is spare."""
        xp = position.__array_namespace__()
        others = xp.concat([position[..., :at], position[..., at + 1 :]], axis=-1)
        return self._replace(position=others, spare=xp.where(np.arange(self.length) == at, position[..., [at]], -1))


def own_and_shared(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """The fields that every example has of its own, [B, T], and those that all share, [T]; None for the others."""
    own = Tokens(*(field if field.ndim > 1 else None for field in tokens))
    return own, Tokens(*(field if field.ndim == 1 else None for field in tokens))


def of_both(own: Tokens, shared: Tokens) -> Tokens:
    """The tokens whose fields these are."""
    return Tokens(*(both if field is None else field for field, both in zip(own, shared, strict=True)))


def running_most(x: Int[Mapped, "... T"]) -> Int[Mapped, "... T"]:
    """The largest so far; numpy for numpy."""
    return jax.lax.cummax(x, axis=x.ndim - 1) if isinstance(x, jax.Array) else np.maximum.accumulate(x, axis=-1)


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Tokens one behind the other, [..., T] the sum of their lengths."""
    return Tokens(*(fields[0].__array_namespace__().concat(fields, axis=-1) for fields in zip(*parts, strict=True)))


def sequential(length: int, **fields: Mapped) -> Tokens:
    """Tokens 0..length-1 in order, one segment, all valid; `fields` replaces any of them. numpy, [T] each."""
    index = np.arange(length, dtype=np.int32)
    zero = np.zeros(length, np.int32)
    told = {name: zero + value for name, value in UNTOLD.items()}
    made = dict.fromkeys(Tokens._fields, zero) | told
    made |= {"index": index, "position": index, "valid": np.ones(length, bool)}
    return Tokens(**{**made, **fields})


def rings(side: int) -> Int[np.ndarray, "..."]:
    """How far inwards each cell of a grid of side * side lies, row by row, 0 at the border: int32 [side * side]."""
    require(side >= 1, "side", side, "a whole number from 1")
    along = np.minimum(np.arange(side), np.arange(side)[::-1])
    return np.minimum.outer(along, along).reshape(-1).astype(np.int32)
