"""Which classes a sequence is of, and what their labels are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int, Key
from positionbias.tasks.sampling import by_weight, distinct


@dataclasses.dataclass(frozen=True)
class ClassDraws:
    """Draws of `classes` classes, of which class k (from 0) has a frequency proportional to (k + 1)^-zipf.

    `balanced`: class k has label k mod `labels`, and different classes of a sequence have different labels. Else labels
    are independent and uniform.
    """

    classes: int
    labels: int
    balanced: bool
    zipf: float

    @property
    def share(self) -> Float[np.ndarray, "K"]:
        """The frequency of each class."""
        weight = np.arange(1.0, self.classes + 1) ** -self.zipf
        return weight / weight.sum()

    def world_labels(self, key: Key[jax.Array, ""]) -> Int[jax.Array, "K"]:
        """The label of each class, i32[classes]."""
        if self.balanced:
            return jnp.arange(self.classes, dtype=jnp.int32) % self.labels
        return jax.random.randint(key, (self.classes,), 0, self.labels, jnp.int32)

    def novel_labels(self, key: Key[jax.Array, ""], count: int) -> Int[jax.Array, "C"]:
        """Labels of `count` classes of no world, i32[count]."""
        if self.balanced:
            return distinct(key, count, self.labels)
        return whole(jax.random.uniform(key, (count,)), self.labels)

    def independent(self, key: Key[jax.Array, ""], count: int, absent: bool) -> Int[jax.Array, "C"]:
        """`count` independent classes, i32[count]; with `absent` none of the others is the last."""
        up_to = jnp.asarray(np.cumsum(self.share)[:-1], jnp.float32)
        draw = jax.random.uniform(key, (count,))
        if absent:
            # The interval of the last is cut out of the unit interval, and the others drawn from what is left.
            last = jnp.searchsorted(up_to, draw[-1:], side="right")
            ends = jnp.pad(up_to, 1, constant_values=(0, 1))
            low, size = ends[last], ends[last + 1] - ends[last]
            others = draw[:-1] * (1 - size)
            draw = draw.at[:-1].set(jnp.where(others >= low, others + size, others))
        return jnp.searchsorted(up_to, draw, side="right").astype(jnp.int32)

    def different(self, key: Key[jax.Array, ""], count: int) -> Int[jax.Array, "C"]:
        """`count` different classes, each by frequency among those left (balanced: of labels left), i32[count]."""
        if not self.balanced:
            return self._one_after_another(key, count, self.share)
        label_key, place_key = jax.random.split(key)
        each = self.share.reshape(-1, self.labels).T  # [labels, classes of a label]
        label = self._one_after_another(label_key, count, each.sum(axis=1))
        up_to = jnp.asarray(np.cumsum(each, axis=1) / each.sum(axis=1, keepdims=True), jnp.float32)[label]
        place = jnp.sum(up_to[:, :-1] <= jax.random.uniform(place_key, (count, 1)), axis=-1, dtype=jnp.int32)
        return label + self.labels * place

    def _one_after_another(
        self, key: Key[jax.Array, ""], count: int, share: Float[np.ndarray, "N"]
    ) -> Int[jax.Array, "C"]:
        """`count` different numbers, each drawn by `share` among those left, i32[count]."""
        return by_weight(key, count, tuple(share)) if self.zipf else distinct(key, count, len(share))


def whole(draw: Float[jax.Array, "..."], size: int) -> Int[jax.Array, "..."]:
    """0..size-1, equally likely if `draw` is uniform on the unit interval."""
    return (draw * size).astype(jnp.int32)
