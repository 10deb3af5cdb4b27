"""Boundless distributed alignment search: how many directions of the stream carry a variable, and which."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from positionbias.analysis.alignment import Taught, cost, descended, interchanged, judged, polar, rotated
from positionbias.analysis.base import STREAM, Axes, Subject, sites
from positionbias.analysis.variables import pairs, width
from positionbias.arrays import Float, Key
from positionbias.spec import member, require

COLD = 0.1  # temperature of the boundary at the end
HOT = 1 / 8  # and at the start, as a share of the width


@member("analyses", "boundless_das")
@dataclasses.dataclass(frozen=True)
class BoundlessDas(Taught):
    """`das` with a whole rotation R of the stream and a learned number of its directions, by layer.

    Wu et al. 2023, "Interpretability at Scale: Identifying Causal Mechanisms in Alpaca" (arXiv 2305.08809): a base x
    and a source s make R' [(1 - m) R x + m R s], where direction j = 0, 1, ... of D has the share
    m_j = sigmoid((j + 1/2) / t) sigmoid((b D - j - 1/2) / t), 0 < b <= 1 is learned by `boundary_rate`, R by `rate`,
    and `weight` b is added to the loss; t goes from D / 8 to 0.1 in even steps (in the paper from 50 to 0.1, of a width
    of 4096). The authors' code has j for j + 1/2, which leaves half of direction 0 out at any t. It is judged with
    whole directions, j + 1/2 < b D.

    The `variable` is one of those of `das`. "size" is b D, rounded to whole directions, and "size_shuffled" that of the
    search with shuffled labels; the others are those of `das`, with as many directions at random as were found.
    """

    variable: str = "answer"
    updates: int = 300
    batch: int = 32
    rate: float = 1e-2
    boundary_rate: float = 1e-2
    weight: float = 1.0

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("iia", "changed", "shuffled", "random", "whole", "size", "size_shuffled"), ("layer",)),
        "nothing": (),
    }
    shown = "iia"
    draws = True

    def __post_init__(self) -> None:
        require(0 < self.boundary_rate <= 1, "boundary_rate", self.boundary_rate, "a number above 0, up to 1")
        require(0 <= self.weight <= 1000, "weight", self.weight, "a number from 0 to 1000")
        super().__post_init__()

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        learned, asked = jax.random.split(key)
        names = sites(layers, STREAM)

        def search(told: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return self._search(subject, names, *told)

        layer, mixed = jnp.divmod(jnp.arange(2 * len(names)), 2)
        rotation, bound = jax.lax.map(search, (layer, mixed == 1, jax.random.split(learned, len(layer))))
        size = rotation.shape[-1]
        share = (jnp.arange(size) + 0.5 < bound[:, None] * size).astype(jnp.float32)
        found, control = ((rotation[which::2], share[which::2]) for which in range(2))
        sizes = {"size": jnp.sum(found[1], axis=-1), "size_shuffled": jnp.sum(control[1], axis=-1)}
        return judged(subject, names, self.variable, found, control, asked) | sizes

    def _search(
        self, subject: Subject, names: list[str], layer: jax.Array, mixed: jax.Array, key: Key[jax.Array, ""]
    ) -> tuple[Float[jax.Array, "D D"], Float[jax.Array, ""]]:
        """The rotation, and how much of it is interchanged."""
        size = width(subject, names[0])
        drawn, steps = jax.random.split(key)

        def loss(parameters: tuple[jax.Array, jax.Array], key: jax.Array, done: jax.Array) -> jax.Array:
            rotation, bound = parameters
            hot = size * HOT
            found = pairs(subject, names, self.variable, key, self.batch)
            share = boundary(size, bound, hot + done * (COLD - hot))
            said = interchanged(subject, names, found, layer, (rotation, share))
            return cost(subject, said, jnp.where(mixed, found.mixed, found.told)) + self.weight * bound

        rules = {
            "rotation": self._training().rule,
            "bound": optax.adam(self.boundary_rate),
        }
        rule = optax.multi_transform(rules, ("rotation", "bound"))

        def mended(parameters: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return polar(parameters[0]), jnp.clip(parameters[1], 1e-3, 1.0)

        start = (rotated(drawn, size, size), jnp.array(0.5))
        return descended(loss, start, rule, steps, self.updates, mended)


def boundary(size: int, bound: jax.Array, temperature: jax.Array) -> Float[jax.Array, "D"]:
    """The share of every direction that is interchanged."""
    place = jnp.arange(size) + 0.5
    return jax.nn.sigmoid(place / temperature) * jax.nn.sigmoid((bound * size - place) / temperature)
