"""Receiver heads: those whose attention falls on a few segments, whoever looks, and what the model is without them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import PATTERN, Axes, Subject, evenly, patterns
from positionbias.analysis.chosen_heads import ABLATED, ChosenHeads
from positionbias.analysis.heads import HEADS
from positionbias.analysis.segments import check_segments, parts
from positionbias.arrays import Bool, Float, Key
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch


def between(attention: Float[jax.Array, "B N T T"], part: Float[jax.Array, "B T P"]) -> Float[jax.Array, "B N P P"]:
    """The mean attention from a row of a part to a row of another; 0 where a part has no rows."""
    share = part / jnp.maximum(jnp.sum(part, axis=1, keepdims=True), 1)
    return jnp.einsum("BNTS,BTG,BSH->BNGH", attention, share, share, precision="highest")


def counted(part: Float[jax.Array, "B T P"], apart: int) -> Bool[jax.Array, "B P P"]:
    """Which pairs of parts count: the first stands at least `apart` parts behind the second."""
    there = jnp.any(part > 0, axis=1)
    index = jnp.arange(part.shape[1])
    first = jnp.min(jnp.where(part > 0, index[:, None], part.shape[1]), axis=1)
    place = jnp.sum((first[:, None, :] < first[:, :, None]) & there[:, None, :], axis=-1)
    return (place[:, :, None] - place[:, None, :] >= apart) & there[:, :, None] & there[:, None, :]


def received(pairs: Float[jax.Array, "B N P P"], pair: Bool[jax.Array, "B P P"]) -> Float[jax.Array, "B N P"]:
    """The vertical score of every part: the mean of what it receives over those that count; 0 where none does."""
    weight = pair.astype(jnp.float32)
    return jnp.einsum("BNGH,BGH->BNH", pairs, weight) / jnp.maximum(jnp.sum(weight, axis=1), 1)[:, None]


def kurtosis(x: Float[jax.Array, "... P"], there: Bool[jax.Array, "... P"]) -> Float[jax.Array, "..."]:
    """Excess kurtosis m4 / m2^2 - 3 of those that are there; 0 where they are all the same."""
    many = jnp.maximum(jnp.sum(there, axis=-1, keepdims=True), 1)

    def mean(y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(there, y, 0.0), axis=-1, keepdims=True) / many

    centre = mean(x)
    second, fourth = (mean((x - centre) ** power)[..., 0] for power in (2, 4))
    varies = second > 1e-8 * centre[..., 0] ** 2
    return jnp.where(varies, fourth / jnp.where(varies, second, 1.0) ** 2 - 3, 0.0)


@member("analyses", "receiver_heads")
@dataclasses.dataclass(frozen=True)
class ReceiverHeads(ChosenHeads):
    """How unevenly each head's attention falls on segments, and accuracy without the heads of the most kurtosis.

    Thought anchors (Bogdan et al. 2025, arXiv 2506.19143), whose sentences are the task's segments (or blocks, see
    `analysis.segments`): the vertical score of a segment is its mean attention, by row and column, from all parts that
    stand at least `apart` behind it (the paper has 4), the question being the last. "kurtosis" is by head the excess
    kurtosis of these scores over segments, "top" the share of the highest in their sum, means over items; "_even" those
    of rows that attend evenly to what they see, as vertical bands come of a causal mask too. Two segments always have
    the kurtosis -2. Then the `share` of heads with the most kurtosis is set to 0, and as many others, drawn eight
    times: "intact", "without" and "without_others" are accuracies on fresh items.
    """

    apart: int = 1

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("kurtosis", "kurtosis_even", "top", "top_even"), ("layer", "head")),
        **ABLATED,
    }
    shown = "top"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.apart <= LONGEST, "apart", self.apart, f"a whole number from 1 to {LONGEST}")

    def reads(self) -> tuple[str, ...]:
        return (PATTERN, HEADS)

    def check(self, subject: Subject) -> None:
        check_segments(subject, self)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> dict[str, jax.Array]:
            attention, part = patterns(subject, layers, batch), parts(subject, batch)
            pair = counted(part, self.apart)
            there = jnp.any(pair, axis=1)[:, None]
            told = {}
            for name, x in (("", attention), ("_even", evenly(attention))):
                score = jax.vmap(lambda a: received(between(a, part), pair))(x)  # [L, B, N, P]
                whole = jnp.sum(score, axis=-1)
                share = jnp.max(score, axis=-1) / jnp.where(whole == 0, 1.0, whole)
                told[f"kurtosis{name}"] = jnp.mean(kurtosis(score, there), axis=1)
                told[f"top{name}"] = jnp.mean(share, axis=1)
            return told

        drawn, fresh, order = jax.random.split(key, 3)
        told = subject.averaged(subject.batch(drawn), one)
        return told | self.ablated(subject, layers, told["kurtosis"], fresh, order)
