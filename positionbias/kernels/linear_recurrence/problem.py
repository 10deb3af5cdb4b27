"""What a driver is asked to compute: one recurrence, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float

LEAST = 1e-32  # of a total that divides: what is nearer to 0 counts as nothing
Feature = Callable[[Float[jax.Array, "... D"]], Float[jax.Array, "... H"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """S_t = diag(e^log_decay_t) S_{t-1} diag(e^value_log_decay_t) + k_t v_t^T, and o_t = q_t S_t, or q_t S_{t-1}.

    S_{t-1} is 0 where `resets`; a driver that does not clear it has to refuse them. With a `feature`, q and k are what
    it gives for these; a driver that does not make them itself is to solve `mapped`.
    """

    q: Float[jax.Array, "B T N D"]
    k: Float[jax.Array, "B T N D"]
    v: Float[jax.Array, "B T N K"]
    log_decay: Float[jax.Array, "B T N 1|H"] | None
    value_log_decay: Float[jax.Array, "B T N K"] | None
    initial_state: Float[jax.Array, "B N H K"]
    inclusive: bool
    reverse: bool
    chunk: int | None  # steps at a time; None for what the driver thinks best
    resets: Bool[jax.Array, "B T"] | None = None
    feature: Feature | None = None  # None for x itself

    @property
    def mapped(self) -> Problem:
        """The same problem without a `feature`: its features of all steps at once."""
        if self.feature is None:
            return self
        return dataclasses.replace(self, q=self.feature(self.q), k=self.feature(self.k), feature=None)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, T, N, H, K."""
        batch, steps, heads, size = shape_of(self.q, self.feature)
        return (batch, steps, heads, size, self.v.shape[-1])

    @property
    def keeps(self) -> Float[jax.Array, "B T 1 1"] | None:
        """0 where the state before a step is cleared, else 1; None for 1."""
        return None if self.resets is None else 1 - self.resets[..., None, None].astype(self.sum_dtype)

    @property
    def sum_dtype(self) -> Any:
        """Of states and sums: float32, or float64 for such queries."""
        return sum_dtype(self.q.dtype)

    @property
    def by_channel(self) -> str | None:
        """Which decay differs between the channels of a head."""
        if self.value_log_decay is not None:
            return "value_log_decay"
        return "log_decay" if self.log_decay is not None and self.log_decay.shape[-1] > 1 else None


def sum_dtype(dtype: Any) -> Any:
    """Of states and sums, for queries of a type."""
    return jnp.promote_types(dtype, jnp.float32)


def shape_of(x: Float[jax.Array, "... D"], feature: Feature | None) -> tuple[int, ...]:
    """The shape of the features."""
    return x.shape if feature is None else jax.eval_shape(feature, x).shape


def power_from(length: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(length - 1, 0).bit_length()
