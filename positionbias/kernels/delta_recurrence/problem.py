"""What a driver is asked to compute: a recurrence over chunks of rows, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Float


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """`advance(q, k, v, gates, *states)` gives outputs and states of a chunk of one head; see `chunk.py`.

    A row of zeros leaves the states as they are, and so may follow the last.
    """

    advance: Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]
    q: Float[jax.Array, "B T N H"]
    k: Float[jax.Array, "B T N H"]
    v: Float[jax.Array, "B T N K"]
    gates: Float[jax.Array, "B T N gates"]
    states: tuple[Float[jax.Array, "B N H K"], ...]
    chunk: int | None  # rows; None for what suits the driver

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, T, N, H, K."""
        return (*self.q.shape, self.v.shape[3])  # type: ignore[return-value]

    @property
    def state_dtype(self) -> Any:
        """Of gates, states and all that is computed: float32, or float64 for such queries."""
        return state_dtype(self.q)


def state_dtype(q: Any) -> Any:
    """Of gates and states beside such queries."""
    return jnp.promote_types(jnp.result_type(q), jnp.float32)
