"""Information contribution: which segments rows that answer attend to, and whether the most attended one is needed."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, evenly, patterns
from positionbias.analysis.segments import (
    asked,
    check_items,
    check_segments,
    correlation,
    evidence_rows,
    grouped,
    of_roles,
    parts,
)
from positionbias.arrays import Key
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "information_contribution")
@dataclasses.dataclass(frozen=True)
class InformationContribution(Analysis):
    """Attention grouped by segments and roles, what segments contribute to answers, and what goes with its peak.

    Huang et al. 2025 (arXiv 2505.11754): grouped attention GA(g, h) is the sum over columns of h and mean over rows of
    g of A; the contribution IC of a segment is GA from rows that answer, a mean over heads, at a layer. "contribution"
    is by layer and segment; "by_part" is GA by layer between parts (segments, and the question behind them), "by_role"
    between roles, means over heads; "_even" those of rows that attend evenly to what they see.

    "peak" is the greatest IC of a segment, summed over layers, of an item, the mean; "found" the share of items where
    that segment holds evidence, "found_by_chance" that of a segment at random. "relation" is the correlation over items
    of their peak with the log-probability of what is right, a mean over answers (the paper has median peaks of 2.22 of
    right items and 1.72 of wrong ones), and "relation_shuffled" with that of the next item.
    """

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("contribution", "contribution_even"), ("layer", "segment")),
        **dict.fromkeys(("by_part", "by_part_even"), ("layer", "part", "to_part")),
        **dict.fromkeys(("by_role", "by_role_even"), ("layer", "role", "to_role")),
        **dict.fromkeys(("peak", "found", "found_by_chance", "relation", "relation_shuffled"), ()),
    }
    shown = "contribution"

    def check(self, subject: Subject) -> None:
        check_items(subject)
        check_segments(subject, self)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> dict[str, jax.Array]:
            outputs, _ = subject.apply(batch)
            attention, part = patterns(subject, layers, batch), parts(subject, batch)
            segment, role = part[..., :-1], of_roles(subject, batch)
            answers = jnp.ones((*batch.query.shape, 1))
            needed = jnp.any(evidence_rows(batch), axis=1).astype(jnp.float32)
            holds = jnp.einsum("BT,BTG->BG", needed, segment) > 0
            told = {"answer": jnp.mean(subject.answers(outputs, batch)["log_probability"], axis=-1)}
            for name, x in (("", attention), ("_even", evenly(attention))):
                from_answers = asked(x, subject.run.answer_rows(batch))
                contribution = jnp.mean(grouped(from_answers, answers, segment)[..., 0, :], axis=2)  # [L, B, G]
                told[f"contribution{name}"] = jnp.moveaxis(contribution, 1, 0)
                for group, rows in (("part", part), ("role", role)):
                    told[f"by_{group}{name}"] = jnp.moveaxis(jnp.mean(grouped(x, rows, rows), axis=2), 1, 0)
            summed = jnp.sum(told["contribution"], axis=1)  # [B, G]
            told["peak"] = jnp.max(summed, axis=-1)
            best = jnp.argmax(summed, axis=-1)[:, None]
            told["found"] = jnp.take_along_axis(holds, best, axis=-1)[:, 0].astype(jnp.float32)
            told["found_by_chance"] = jnp.mean(holds, axis=-1)
            return told

        found = subject.each(subject.batch(key), one)
        answer = found.pop("answer")
        relation = {
            "relation": correlation(found["peak"], answer),
            "relation_shuffled": correlation(found["peak"], jnp.roll(answer, -1)),
        }
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), found) | relation
