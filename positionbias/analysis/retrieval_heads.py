"""Retrieval heads: those that look at the evidence whose token the model then says, and what it is without them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import PATTERN, Axes, Subject, sites
from positionbias.analysis.chosen_heads import ABLATED, ChosenHeads
from positionbias.analysis.heads import HEADS
from positionbias.arrays import Key
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "retrieval_heads")
@dataclasses.dataclass(frozen=True)
class RetrievalHeads(ChosenHeads):
    """Share of answers at which a head's strongest column is evidence, and holds what is said (Wu et al. 2024).

    arXiv 2404.15574, "Retrieval Head Mechanistically Explains Long-Context Factuality", whose needle is here the
    evidence of an answer, and whose decoding the row that answers. Then the `share` of all heads with the highest
    scores, one at least and half of them at most, are set to 0, and as many others, drawn eight times. "score" is by
    head; "intact", "without" and "without_others" are accuracies of the whole model, without the first and without the
    others, on fresh items.
    """

    axes: ClassVar[Axes] = {"score": ("layer", "head"), **ABLATED}
    shown = "score"

    def reads(self) -> tuple[str, ...]:
        return (PATTERN, HEADS)

    def check(self, subject: Subject) -> None:
        subject.require_tokens("a task of tokens, as a head's evidence is one", read=True)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> jax.Array:
            names = sites(layers, PATTERN)
            outputs, patterns = subject.apply(batch, names)
            rows, each = subject.run.answer_rows(batch), jnp.arange(len(batch.query))[:, None]
            said = subject.said(outputs, batch)  # [B, A]
            scores = []
            for name in names:
                column = jnp.argmax(patterns[name], axis=-1)[each, :, rows]  # [B, A, N]
                evidence = jnp.any(column[..., None] == batch.evidence[:, :, None], axis=-1)
                told = jnp.take_along_axis(batch.inputs[:, None], column, axis=-1)
                scores.append(jnp.mean(evidence & (told == said[..., None]), axis=(0, 1)))
            return jnp.stack(scores)

        found, fresh, drawn = jax.random.split(key, 3)
        score = subject.averaged(subject.batch(found), one)
        return {"score": score, **self.ablated(subject, layers, score, fresh, drawn)}
