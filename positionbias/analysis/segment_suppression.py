"""Segment suppression: what later rows, and answers, say where nothing attends to a segment."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import PATTERN, Analysis, Axes, Subject, kl, sites
from positionbias.analysis.segments import check_segments, count, evidence_rows, parts
from positionbias.arrays import Int, Key
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "segment_suppression")
@dataclasses.dataclass(frozen=True)
class SegmentSuppression(Analysis):
    """The matrix of what suppressing a segment changes in the parts behind it (thought anchors, Bogdan et al. 2025).

    arXiv 2506.19143, whose sentences are the task's segments (or blocks, see `analysis.segments`): attention of all
    layers and heads to a segment is forbidden to rows outside it. "changed" is by segment and part (segments, and the
    question behind them) KL(as it is || suppressed), nats, of what a row of the part says, the mean over these rows and
    items; the paper has the mean of its logarithm, which has no value where nothing leads from one to the other, such
    as to parts in front of a causal mask. "answer" is by segment the change of the log-probability of right answers;
    "needed" the mean of it over segments that hold an answer's evidence, "others" that over the other ones, the
    control, 0 where there are none. "needed_first" is the share of answers that the worst change of all segments comes
    from one that is needed, "needed_by_chance" that of a segment at random.
    """

    axes: ClassVar[Axes] = {
        "changed": ("segment", "part"),
        "answer": ("segment",),
        **dict.fromkeys(("needed", "others", "needed_first", "needed_by_chance"), ()),
    }
    shown = "answer"
    whole = True

    def check(self, subject: Subject) -> None:
        check_segments(subject, self)
        subject.require_tokens("a task that answers by tokens, which have odds", said=True)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        many = count(subject)

        def one(batch: Batch) -> dict[str, jax.Array]:
            part = parts(subject, batch)
            base, _ = subject.apply(batch)
            intact = subject.answers(base, batch)["log_probability"]

            def without(segment: Int[jax.Array, ""]) -> tuple[jax.Array, jax.Array]:
                inside = part[..., segment] > 0  # [B, T]
                allowed = ~inside[:, None, :] | inside[:, :, None]
                change = {name: edits.restrict(allowed) for name in sites(layers, PATTERN)}
                outputs, _ = subject.apply(batch, (), change)
                return kl(base, outputs), subject.answers(outputs, batch)["log_probability"] - intact

            told, change = jax.lax.map(without, jnp.arange(many))  # [G, B, T], [G, B, A]
            needs = jnp.einsum("BAT,BTG->GBA", evidence_rows(batch).astype(jnp.float32), part[..., :-1]) > 0
            worst = jnp.take_along_axis(needs, jnp.argmin(change, axis=0)[None], axis=0)[0]

            def over(which: jax.Array) -> jax.Array:
                return jnp.mean(jnp.sum(jnp.where(which, change, 0.0), 0) / jnp.maximum(jnp.sum(which, 0), 1))

            share = part / jnp.maximum(jnp.sum(part, axis=1, keepdims=True), 1)
            return {
                "changed": jnp.einsum("GBT,BTP->GP", told, share, precision="highest") / len(part),
                "answer": jnp.mean(change, axis=(1, 2)),
                "needed": over(needs),
                "others": over(~needs),
                "needed_first": jnp.mean(worst),
                "needed_by_chance": jnp.mean(needs),
            }

        return subject.averaged(subject.batch(key), one)
