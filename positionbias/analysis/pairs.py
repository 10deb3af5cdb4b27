"""What analyses share that hold a prompt against another, which differs by a token of its evidence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Subject
from positionbias.arrays import Int
from positionbias.spec import require
from positionbias.tasks.base import Batch


def check_pairs(subject: Subject) -> None:
    """Raise ConfigError where there is no other prompt."""
    subject.require_tokens("a task of tokens, as one is put in place of another", read=True, said=True)
    require(subject.items >= 2, "items", subject.items, "2 or more, as the token is that of another item")


def corrupted(batch: Batch) -> Int[jax.Array, "B T"]:
    """Inputs of the batch with the token of each item's evidence replaced by that of the next item's.

    Of a whole batch, not of a piece of it, which may be a single item.
    """
    at, each = batch.last_evidence[:, -1], jnp.arange(len(batch.inputs))
    token = batch.inputs[each, at]
    return batch.inputs.at[each, at].set(jnp.roll(token, -1))
