"""How many numbers a model keeps to go on with a sequence: the memory that recall is plotted against."""

from __future__ import annotations

import dataclasses

import numpy as np

from positionbias.arrays import Bool
from positionbias.models.base import Architecture, visible
from positionbias.models.parameters import Blueprint
from positionbias.tokens import Tokens


def state_size(architecture: Architecture, blueprint: Blueprint, tokens: Tokens, context_length: int) -> int | None:
    """Numbers kept of the rows before, at most, while the rows from the context on are made one after another.

    It is what the operators declare, summed over all attentions (`Operator.state_size`); an encoder's are made once and
    keep nothing. Of keys only those count that a row to come can still see, so that a window keeps few. None where the
    stream is concatenated: its width differs from layer to layer, and so does what operators on the stream keep.

    `tokens` are numpy, [T] each, and tell their context.
    """
    if blueprint.config.residual == "concatenate":
        return None
    total = 0
    for _, operator, mask, q, k in architecture.attentions(blueprint, tokens, context_length):
        made = np.asarray(q.index) >= context_length
        if made.any():
            seen = np.asarray(visible(operator, mask, q, k))[made]
            kept = _kept(seen, np.asarray(q.index)[made], np.asarray(k.index), q is k)
            total += operator.state_size(dataclasses.replace(blueprint.dims, length=kept))
    return total


def _kept(seen: Bool[np.ndarray, "M S"], rows: np.ndarray, keys: np.ndarray, own: bool) -> int:
    """Keys kept, at most, before a row is made: those that it or a later one sees and, if `own`, that stand before."""
    later = np.logical_or.accumulate(seen[::-1], axis=0)[::-1]
    return int((later & (keys < rows[:, None])).sum(axis=1).max() if own else later.sum(axis=1).max())
