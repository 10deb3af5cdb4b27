"""Retrieval heads: those that look at the evidence whose token the model then says, and what it is without them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import PATTERN, Analysis, Axes, Subject, sites
from positionbias.analysis.heads import HEADS, others, top, without
from positionbias.arrays import Key
from positionbias.spec import ConfigError, member, require
from positionbias.tasks.base import Batch

DRAWS = 8  # of random heads


@member("analyses", "retrieval_heads")
@dataclasses.dataclass(frozen=True)
class RetrievalHeads(Analysis):
    """Share of answers at which a head's strongest column is evidence, and holds what is said (Wu et al. 2024).

    arXiv 2404.15574, "Retrieval Head Mechanistically Explains Long-Context Factuality", whose needle is here the
    evidence of an answer, and whose decoding the row that answers. Then the `share` of all heads with the highest
    scores, one at least and half of them at most, are set to 0, and as many others, drawn eight times. "score" is by
    head; "intact", "without" and "without_others" are accuracies of the whole model, without the first and without the
    others, on fresh items.
    """

    share: float = 0.05

    axes: ClassVar[Axes] = {"score": ("layer", "head"), "intact": (), "without": (), "without_others": ()}
    shown = "score"

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", self.share, "a number between 0 and 1")

    def reads(self) -> tuple[str, ...]:
        return (PATTERN, HEADS)

    def check(self, subject: Subject) -> None:
        kind = subject.run.task.input.kind
        require(kind == "tokens", "task", subject.run.config.task, "a task of tokens, as a head's evidence is one")

    def layers(self, subject: Subject) -> list[int]:
        found = super().layers(subject)
        heads = len(found) * subject.run.config.model.heads
        if 2 * self._count(heads) > heads:
            raise ConfigError(
                f"--analyses: share = {self.share} sets {self._count(heads)} of {heads} heads to 0, which leaves fewer"
                " others to compare with; allowed: half of the heads at most, of two or more."
            )
        return found

    def _count(self, heads: int) -> int:
        return max(1, round(self.share * heads))

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> jax.Array:
            names = sites(layers, PATTERN)
            outputs, patterns = subject.apply(batch, names)
            rows, each = subject.run.answer_rows(batch), jnp.arange(len(batch.query))[:, None]
            said = subject.run.experiment.objective.said(outputs[each, rows])  # [B, A]
            scores = []
            for name in names:
                column = jnp.argmax(patterns[name], axis=-1)[each, :, rows]  # [B, A, N]
                evidence = jnp.any(column[..., None] == batch.evidence[:, :, None], axis=-1)
                told = jnp.take_along_axis(batch.inputs[:, None], column, axis=-1)
                scores.append(jnp.mean(evidence & (told == said[..., None]), axis=(0, 1)))
            return jnp.stack(scores)

        found, fresh, drawn = jax.random.split(key, 3)
        score = subject.averaged(subject.batch(found), one)
        count = self._count(score.size)
        chosen, batch = top(score, count), subject.batch(fresh)

        def control(key: jax.Array) -> jax.Array:
            return subject.accuracy(batch, without(layers, others(key, chosen, count)))["accuracy"]

        return {
            "score": score,
            "intact": subject.accuracy(batch)["accuracy"],
            "without": subject.accuracy(batch, without(layers, chosen))["accuracy"],
            "without_others": jnp.mean(jax.lax.map(control, jax.random.split(drawn, DRAWS))),
        }
