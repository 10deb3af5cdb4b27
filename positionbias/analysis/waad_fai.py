"""Where local heads look far back, and which rows global heads come back to."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Axes, Subject, evenly, patterns
from positionbias.analysis.chosen_heads import ChosenHeads
from positionbias.analysis.heads import top
from positionbias.analysis.segments import correlation, evidence_rows, numbers
from positionbias.arrays import Bool, Float, Key
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch


def windowed(attention: Float[jax.Array, "... T T"], window: int) -> Float[jax.Array, "... T"]:
    """WAAD_t = sum over s <= t of A[t, s] min(t - s, window), in positions."""
    index = jnp.arange(attention.shape[-1])
    back = jnp.clip(index[:, None] - index, 0, window).astype(jnp.float32)
    return jnp.sum(attention * back, axis=-1)


def influence(attention: Float[jax.Array, "... T T"], low: int, high: int) -> Float[jax.Array, "... T"]:
    """FAI_s = mean of A[t, s] over the rows t from s + low to s + high that there are; 0 where there are none."""
    index = jnp.arange(attention.shape[-1])
    after = index[:, None] - index
    counts = ((after >= low) & (after <= high)).astype(jnp.float32)
    return jnp.sum(attention * counts, axis=-2) / jnp.maximum(jnp.sum(counts, axis=0), 1)


def pair_of_means(x: Float[jax.Array, "B T"], some: Bool[jax.Array, "B T"], rest: Bool[jax.Array, "B T"]) -> jax.Array:
    """The means f32[B, 2] over some rows and over others, 0 where there are none."""
    means = [jnp.sum(jnp.where(rows, x, 0.0), -1) / jnp.maximum(jnp.sum(rows, -1), 1) for rows in (some, rest)]
    return jnp.stack(means, axis=-1)


@member("analyses", "waad_fai")
@dataclasses.dataclass(frozen=True)
class WaadFai(ChosenHeads):
    """Windowed average attention distance of local heads, and future attention influence of global ones, by row.

    "Attention Illuminates LLM Reasoning" (2025, arXiv 2510.13554): heads are sorted by their mean look-back distance
    ("distance", as `look_back` has it); the `share` of all that look back least is averaged to A_loc, the `share` that
    looks back most to A_glob. "waad" of row t is the sum over s <= t of A_loc[t, s] min(t - s, `window`), "fai" of row
    s the mean of A_glob[t, s] over s + `low` <= t <= s + `high`, 0 where there are no such rows. The paper has
    share = 0.3, window = 10, low = 10 and high = 50, for reasoning of thousands of rows. "_even" are the same of rows
    that attend evenly to what they see.

    What they are said to go with: "follows" is the correlation over rows, a mean over items, of waad with the entropy
    ("entropy", nats) of what the row says, which of rows that were not trained to say anything tells little; "starts"
    the waad of first rows of segments over that of their other rows, ratios of means over items; "anchors" the fai of
    rows that answers need over that of all rows that have one. Ratios over nothing are 0.
    """

    share: float = 0.3
    window: int = 4
    low: int = 2
    high: int = 50

    axes: ClassVar[Axes] = {
        "distance": ("layer", "head"),
        **dict.fromkeys(("waad", "waad_even", "fai", "fai_even", "entropy"), ("position",)),
        **dict.fromkeys(("follows", "follows_even", "starts", "starts_even", "anchors", "anchors_even"), ()),
    }
    shown = "waad"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.window <= LONGEST, "window", self.window, f"a whole number from 1 to {LONGEST}")
        require(1 <= self.low <= LONGEST, "low", self.low, f"a whole number from 1 to {LONGEST}")
        require(self.low <= self.high <= LONGEST, "high", self.high, f"low = {self.low} to {LONGEST}")

    def check(self, subject: Subject) -> None:
        last = subject.run.task.length(subject.condition) - 1
        require(self.low <= last, "low", self.low, f"1 to {last}, as there are {last + 1} rows")
        subject.require_tokens("a task that answers by tokens, which have an entropy", said=True)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        batch, index = subject.batch(key), jnp.arange(subject.run.task.length(subject.condition))
        back = (index[:, None] - index).astype(jnp.float32)

        def far(piece: Batch) -> jax.Array:
            return jnp.mean(jnp.sum(patterns(subject, layers, piece) * back, axis=-1), axis=(1, 3))

        distance = subject.averaged(batch, far)
        count = self.chosen(distance.size)
        local, wide = (top(score, count).astype(jnp.float32) / count for score in (-distance, distance))

        def one(piece: Batch) -> dict[str, jax.Array]:
            attention = patterns(subject, layers, piece)
            said = jax.nn.log_softmax(subject.apply(piece)[0].astype(jnp.float32))
            entropy = -jnp.sum(jnp.exp(said) * said, axis=-1)
            segment = numbers(subject, piece.tokens, len(piece.query))
            first = (segment > 0) & (segment != jnp.pad(segment, ((0, 0), (1, 0)))[:, :-1])
            has = jnp.broadcast_to(index + self.low < len(index), segment.shape)
            needed = jnp.any(evidence_rows(piece), axis=1) & has
            told = {"entropy": jnp.mean(entropy, axis=0)}
            for name, x in (("", attention), ("_even", evenly(attention))):
                waad = windowed(jnp.einsum("LBNTS,LN->BTS", x, local), self.window)
                fai = influence(jnp.einsum("LBNTS,LN->BTS", x, wide), self.low, self.high)
                told |= {f"waad{name}": jnp.mean(waad, axis=0), f"fai{name}": jnp.mean(fai, axis=0)}
                told[f"follows{name}"] = jnp.mean(jax.vmap(correlation)(waad, entropy))
                told[f"starts{name}"] = jnp.mean(pair_of_means(waad, first, (segment > 0) & ~first), axis=0)
                told[f"anchors{name}"] = jnp.mean(pair_of_means(fai, needed, has), axis=0)
            return told

        told = subject.averaged(batch, one)
        for name in ("starts", "starts_even", "anchors", "anchors_even"):
            some, rest = told[name]
            told[name] = jnp.where(rest > 0, some / jnp.where(rest > 0, rest, 1.0), 0.0)
        return told | {"distance": distance}
