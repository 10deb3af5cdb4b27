"""The assignment protocol: which position each token is told, whatever the scheme then makes of it.

An assignment reads where tokens are stored, what they belong to and the positions the task gave them, and is written
with array operators, so that layouts that all examples share stay numpy and are worked out once.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Int, Key, Mapped
from positionbias.tokens import Tokens


class Assignment:
    """Which position each token is told."""

    axis = "assignments"
    drawn: ClassVar[bool] = False  # whether every example is told other positions, drawn in `draw`

    def positions(self, tokens: Tokens) -> Int[Mapped, "... T"]:
        """The position of each token, from 0; numpy for numpy. Where they are drawn, what they are drawn from."""
        raise NotImplementedError

    def draw(self, key: Key[jax.Array, ""], tokens: Tokens) -> Int[jax.Array, "T"]:
        """The positions of one example, drawn."""
        raise NotImplementedError

    def reach(self, tokens: Tokens) -> int:
        """One more than the largest position that tokens of this layout, numpy [T] each, may be told."""
        return int(np.max(self.positions(tokens))) + 1


def library(x: Mapped) -> Any:
    """numpy for numpy arrays, else jax.numpy."""
    return jnp if isinstance(x, jax.Array) else np
