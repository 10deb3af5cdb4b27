"""What calls of recurrences are given, checked."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool
from positionbias.errors import ConfigError


def checked_steps(name: str, told: Any, q: Any) -> Bool[jax.Array, "B T"] | None:
    """Booleans [T] or [B, T] that say something of the steps of q [B, T, N, H], as [B, T]; None for None."""
    if told is None:
        return None
    array = isinstance(told, jax.Array | np.ndarray)
    if not array or told.dtype != np.dtype(bool) or told.shape not in (q.shape[:2], q.shape[1:2]):
        kind = f"{told.dtype} {list(told.shape)}" if array else f"a {type(told).__name__}"
        raise ConfigError(f"{name} is {kind}; allowed: booleans [T] or [B, T] for q {list(q.shape)}.")
    return jnp.broadcast_to(told, q.shape[:2])
