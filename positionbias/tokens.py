"""What masks and position schemes know about each token.

Order masks read `index`, where the token is stored; position schemes read `position`, what the model is told.
Keeping the two apart is what lets an intervention move one without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from positionbias.arrays import Mapped


class Tokens(NamedTuple):
    """Per-token integers [..., T] that broadcast; any field may carry leading batch and head axes."""

    index: Mapped  # storage order, 0..T-1
    position: Mapped  # what the position scheme sees
    segment: Mapped  # document, list or block the token belongs to
    role: Mapped  # what the token is for, in the task's own numbering
    frame: Mapped  # time step of a group of tokens
    scale: Mapped  # level of a multi-scale token map
    valid: Mapped  # bool; False is padding, never seen and never seeing
    # What models and objectives tell; tasks leave it at 0.
    context: Mapped  # 1 for the context 0..C-1, which an encoder would read
    depth: Mapped  # pass of a looped model
    mode: Mapped  # which of two masks `switch` is
    hidden: Mapped  # 1 where an objective hid the input
    rank: Mapped  # place in the order in which an objective has inputs told

    @property
    def length(self) -> int:
        """T."""
        return int(self.index.shape[-1])

    def told_context(self, length: int) -> Tokens:
        """The tokens with the first `length` stored as the context."""
        return self._replace(context=(self.index < length).astype(np.int32))

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

        New ones belong to the context and to no group, are valid, of the sequence's mode, and told the positions that
        follow on the row before, from 0 in front.
        """
        edge, step = self.cut(max(at - 1, 0), max(at, 1)), np.arange(rows, dtype=np.int32)
        new = Tokens(*(field * 0 + 0 * step for field in edge))
        new = new._replace(valid=new.valid == 0, context=new.context + 1, mode=new.mode + edge.mode)
        first = (edge.index + 1, edge.position + 1) if at else (new.index, new.position)
        new = new._replace(index=first[0] + step, position=first[1] + step)
        rest = self.cut(at, self.length)
        return self.cut(0, at), new, rest._replace(index=rest.index + rows, position=rest.position + rows)


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Tokens one behind the other, [..., T] the sum of their lengths."""
    return Tokens(*(fields[0].__array_namespace__().concat(fields, axis=-1) for fields in zip(*parts, strict=True)))


def sequential(length: int, **fields: Mapped) -> Tokens:
    """Tokens 0..length-1 in order, one segment, all valid; `fields` replaces any of them. numpy, [T] each."""
    index = np.arange(length, dtype=np.int32)
    zero = np.zeros(length, np.int32)
    made = dict.fromkeys(Tokens._fields, zero) | {"index": index, "position": index, "valid": np.ones(length, bool)}
    return Tokens(**{**made, **fields})


TOLD = ("context", "depth", "mode", "hidden", "rank")  # the fields that no task knows, and no stored item holds
