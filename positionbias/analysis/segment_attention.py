"""Segment attention: how much of their attention rows that answer spend on what they need, and what that does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import PATTERN, Analysis, Axes, Labels, Subject, evenly, patterns, sites
from positionbias.analysis.segments import (
    asked,
    check_items,
    columns_at,
    correlation,
    evidence_rows,
    gold,
    reweighted,
)
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.spec import member
from positionbias.tasks.base import Batch

FACTORS = (0.0, 0.5, 1.0, 2.0)


@member("analyses", "segment_attention")
@dataclasses.dataclass(frozen=True)
class SegmentAttention(Analysis):
    """Attention of rows that answer to the segments that hold their evidence, its relation to answers, and its effect.

    The share of a segment, as visual attention scores are for images, and whether more of it comes with better answers.
    "segment" is by head the attention to all rows of these segments, "evidence" that to the rows of evidence alone, as
    means over answers; "_even" those of rows that attend evenly to what they see. "relation" is the correlation over
    answers of "segment" with the log-probability of the right one, "relation_shuffled" with that of the next item's:
    chance.

    A relation need not be a cause, so attention is changed in the rows that answer: weights on the segments times a
    factor, rows brought back to their sums. "without" is by head what the log-probability (nats) gains at 0; "scaled"
    and "accuracy" are by factor, of all heads, the log-probability and the accuracy. "_other" are the same of as many
    other segments (`segments.gold`; as at 1 where there are none). Of a cause, "without" has the sign that "relation"
    has not. "strongest" is the most of "segment", "answered" the log-probability as it is; "over_replicas" is the
    correlation of these two over replicas, where there are three that differ.
    """

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("segment", "segment_even", "evidence", "evidence_even"), ("layer", "head")),
        **dict.fromkeys(("relation", "relation_shuffled", "without", "without_other"), ("layer", "head")),
        **dict.fromkeys(("scaled", "scaled_other", "accuracy", "accuracy_other"), ("factor",)),
        "strongest": (),
        "answered": (),
    }
    across: ClassVar[Mapping[str, tuple[str, str]]] = {"over_replicas": ("strongest", "answered")}
    shown = "segment"
    labels: ClassVar[Labels] = {"factor": tuple(f"{factor:g}" for factor in FACTORS)}

    def check(self, subject: Subject) -> None:
        check_items(subject)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        heads, batch = subject.run.config.model.heads, subject.batch(key)
        found = subject.each(batch, lambda piece: self._shares(subject, layers, piece))
        told = {name: jnp.mean(x, axis=(0, 1)) for name, x in found.items() if name != "answer"}
        answer = found["answer"]  # [B, A]
        share = found["segment"].reshape(-1, len(layers), heads)
        told["relation"] = correlation(share, answer.reshape(-1))
        told["relation_shuffled"] = correlation(share, jnp.roll(answer, -1, axis=0).reshape(-1))

        single = jnp.eye(len(layers) * heads, dtype=bool).reshape(-1, len(layers), heads)
        every = jnp.ones((len(FACTORS), len(layers), heads), bool)
        chosen = jnp.concatenate([single, every])
        factor = jnp.concatenate([jnp.zeros(len(single)), jnp.array(FACTORS)])

        for name, which in (("", 0), ("_other", 1)):
            log, right = self._changed(subject, layers, batch, chosen, factor, which)
            one = len(single)
            told[f"scaled{name}"], told[f"accuracy{name}"] = log[one:], right[one:]
            told[f"without{name}"] = log[:one].reshape(len(layers), heads) - log[one + FACTORS.index(1.0)]
        return told | {"strongest": jnp.max(told["segment"]), "answered": jnp.mean(answer)}

    def _shares(self, subject: Subject, layers: list[int], batch: Batch) -> dict[str, jax.Array]:
        """Of every item and answer the shares by layer and head, and the log-probability of what is right."""
        outputs, _ = subject.apply(batch)
        rows, needed = subject.run.answer_rows(batch), {"segment": gold(subject, batch)[0]}
        needed["evidence"] = evidence_rows(batch)
        attention = asked(patterns(subject, layers, batch), rows)  # [L, B, N, A, T]
        told = {"answer": subject.answers(outputs, batch)["log_probability"]}
        for suffix, x in (("", attention), ("_even", evenly(attention))):
            for name, columns in needed.items():
                told[name + suffix] = jnp.einsum("LBNAT,BAT->BALN", x, columns.astype(jnp.float32))
        return told

    def _changed(
        self,
        subject: Subject,
        layers: list[int],
        batch: Batch,
        chosen: Bool[jax.Array, "M L N"],
        factor: Float[jax.Array, "M"],
        which: int,
    ) -> tuple[Float[jax.Array, "M"], Float[jax.Array, "M"]]:
        """Log-probability and accuracy of answers under each change, of the segments that they need, or of others."""

        def one(piece: Batch) -> dict[str, jax.Array]:
            columns = columns_at(subject.run.answer_rows(piece), gold(subject, piece)[which])

            def under(change: tuple[jax.Array, Int[jax.Array, ""]]) -> dict[str, jax.Array]:
                names = enumerate(sites(layers, PATTERN))
                edit = {name: reweighted(columns, change[1], heads=change[0][i]) for i, name in names}
                return jax.tree.map(jnp.mean, subject.answers(subject.apply(piece, (), edit)[0], piece))

            return jax.lax.map(under, (chosen, factor))

        found = subject.averaged(batch, one)
        return found["log_probability"], found["accuracy"]
