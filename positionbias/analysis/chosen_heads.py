"""What analyses share that choose a few heads by a score, and hold what they do against as many others."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject
from positionbias.analysis.heads import DRAWS, others, top, without
from positionbias.arrays import Float, Key
from positionbias.spec import ConfigError, require

ABLATED: Axes = {"intact": (), "without": (), "without_others": ()}  # what `ablated` finds


@dataclasses.dataclass(frozen=True)
class ChosenHeads(Analysis):
    """The `share` of all heads with the highest scores, one at least and half of them at most."""

    share: float = 0.05

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", self.share, "a number between 0 and 1")

    def layers(self, subject: Subject) -> list[int]:
        found = super().layers(subject)
        heads = len(found) * subject.run.config.model.heads
        if 2 * self.chosen(heads) > heads:
            raise ConfigError(
                f"--analyses: share = {self.share} takes {self.chosen(heads)} of {heads} heads, which leaves fewer"
                " others to compare with; allowed: half of the heads at most, of two or more."
            )
        return found

    def chosen(self, heads: int) -> int:
        """How many of so many heads."""
        return max(1, round(self.share * heads))

    def ablated(
        self,
        subject: Subject,
        layers: list[int],
        scores: Float[jax.Array, "L N"],
        items: Key[jax.Array, ""],
        draws: Key[jax.Array, ""],
    ) -> dict[str, jax.Array]:
        """The accuracy of the model as it is, with the heads of the highest scores set to 0, and with others so.

        On items drawn by `items`; of the others, as many drawn eight times by `draws`, the mean.
        """
        number, batch = self.chosen(scores.size), subject.batch(items)
        chosen = top(scores, number)

        def control(key: jax.Array) -> jax.Array:
            return subject.accuracy(batch, without(layers, others(key, chosen, number)))["accuracy"]

        return {
            "intact": subject.accuracy(batch)["accuracy"],
            "without": subject.accuracy(batch, without(layers, chosen))["accuracy"],
            "without_others": jnp.mean(jax.lax.map(control, jax.random.split(draws, DRAWS))),
        }
