"""Induction: heads that look one token back, and heads by which an answer looks at its evidence."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, evenly, patterns
from positionbias.arrays import Key
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "induction")
@dataclasses.dataclass(frozen=True)
class Induction(Analysis):
    """Attention of every head to the row before, and of rows that answer to their evidence (Olsson et al. 2022).

    arXiv 2209.11895; the two associations that Reddy (2023, arXiv 2312.03002) follows through training. "previous" is
    the mean of A[i, i - 1] over rows i >= 1, "evidence" that of A[q, e] over answers, e the evidence that holds the
    answer; "previous_even" and "evidence_even" are those of rows that attend evenly to what they see.
    """

    axes: ClassVar[Axes] = dict.fromkeys(("evidence", "evidence_even", "previous", "previous_even"), ("layer", "head"))
    shown = "evidence"

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> dict[str, jax.Array]:
            found = patterns(subject, layers, batch)  # [L, B, N, T, T]
            rows, each = subject.run.answer_rows(batch), jnp.arange(len(batch.query))[:, None]
            told = {}
            for name, x in (("", found), ("_even", evenly(found))):
                before = jnp.diagonal(x, offset=-1, axis1=-2, axis2=-1)
                told[f"previous{name}"] = jnp.mean(before, axis=(1, 3))
                at = x[:, each, :, rows, batch.last_evidence]  # [B, A, L, N]
                told[f"evidence{name}"] = jnp.mean(at, axis=(0, 1))
            return told

        return subject.averaged(subject.batch(key), one)
