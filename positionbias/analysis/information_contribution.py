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
from positionbias.arrays import Bool, Float, Key
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "information_contribution")
@dataclasses.dataclass(frozen=True)
class InformationContribution(Analysis):
    """Attention grouped by segments and roles, what segments contribute to answers, and what goes with its peak.

    Huang et al. 2025 (arXiv 2505.11754): grouped attention GA(g, h) is the sum over columns of h and mean over rows of
    g of A; the contribution IC of a segment is GA from a row that answers, a mean over heads, at a layer.
    "contribution" is by layer and segment, the mean over answers; "by_part" is GA by layer between parts (segments,
    and the question behind them), "by_role" between roles, means over heads and over the items that have rows
    of the first of the two, 0 where none has; "_even" those of rows that attend evenly to what they see.

    "peak" is the greatest IC of a segment, summed over layers, of an answer, the mean; "found" the share of answers
    where that segment holds their evidence, "found_by_chance" that of a segment at random. "relation" is the
    correlation over answers of their peak with the log-probability of what is right (the paper, whose answers are of
    several rows, has median peaks of 2.22 where it is right and 1.72 where it is wrong), "relation_shuffled" with that
    of the next item's.
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
            holds = jnp.einsum("BAT,BTG->BAG", evidence_rows(batch).astype(jnp.float32), segment) > 0
            told = {"answer": subject.answers(outputs, batch)["log_probability"]}
            told |= {f"has_{group}": jnp.any(rows > 0, axis=1) for group, rows in (("part", part), ("role", role))}
            for name, x in (("", attention), ("_even", evenly(attention))):
                heads = jnp.mean(x, axis=2, keepdims=True)  # [L, B, 1, T, T]
                answers = asked(heads, subject.run.answer_rows(batch))[:, :, 0]  # [L, B, A, T]
                told[f"contribution{name}"] = jnp.einsum("LBAT,BTG->BALG", answers, segment, precision="highest")
                for group, rows in (("part", part), ("role", role)):
                    told[f"by_{group}{name}"] = jnp.moveaxis(grouped(heads, rows, rows)[:, :, 0], 1, 0)
            summed = jnp.sum(told["contribution"], axis=2)  # [B, A, G]
            best = jnp.argmax(summed, axis=-1)[..., None]
            told["peak"] = jnp.max(summed, axis=-1)
            told["found"] = jnp.take_along_axis(holds, best, axis=-1)[..., 0].astype(jnp.float32)
            told["found_by_chance"] = jnp.mean(holds, axis=-1)
            return told

        found = subject.each(subject.batch(key), one)
        answer, has = found.pop("answer"), {group: found.pop(f"has_{group}") for group in ("part", "role")}
        relation = {
            "relation": correlation(found["peak"].reshape(-1), answer.reshape(-1)),
            "relation_shuffled": correlation(found["peak"].reshape(-1), jnp.roll(answer, -1, axis=0).reshape(-1)),
        }
        groups = {
            f"by_{group}{name}": _over_those(found.pop(f"by_{group}{name}"), of)
            for group, of in has.items()
            for name in ("", "_even")
        }
        named = {name: x.reshape(-1, *x.shape[x.ndim - len(self.axes[name]) :]) for name, x in found.items()}
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), named) | groups | relation


def _over_those(attention: Float[jax.Array, "B L G H"], has: Bool[jax.Array, "B G"]) -> Float[jax.Array, "L G H"]:
    """The mean over the items that have rows of a group; 0 where none has."""
    weight = has / jnp.maximum(jnp.sum(has, axis=0), 1)
    return jnp.einsum("BLGH,BG->LGH", attention, weight, precision="highest")
