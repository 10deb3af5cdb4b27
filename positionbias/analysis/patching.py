"""Activation patching: which activations, put into a run on another prompt, bring the right answer back."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import (
    STREAM,
    Analysis,
    Axes,
    Labels,
    Subject,
    last_outputs,
    last_rows,
    right_answer,
    sites,
)
from positionbias.analysis.heads import HEADS
from positionbias.analysis.pairs import check_pairs, corrupted
from positionbias.arrays import Bool, Int, Key
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch

SITES = {"stream": STREAM, "attention": "layers.*.attention.output", "heads": HEADS}
PLACES = ("evidence", "answer", "elsewhere")


@member("analyses", "patching")
@dataclasses.dataclass(frozen=True)
class Patching(Analysis):
    """Share of the right answer that a clean activation restores in a corrupted run, by site, layer and place.

    Zhang and Nanda 2023 (arXiv 2309.16042): a prompt is corrupted by another token in place of its evidence, that of
    the next item of the batch; m is the logit of what is right minus that of what the model says of the corrupted
    prompt; the effect of a site is (m patched - m corrupted) / (m clean - m corrupted), a ratio of means, into which
    items enter whose answers differ. Of the last answer of an item. "stream" and "attention" (what it adds) are patched
    at the row of the evidence, at the row that answers, and at all others; "heads" one by one in all rows. Of the last
    layer the stream at the answer restores all, 1; effects of heads do not add up to that of their layer. "clean" and
    "corrupted" are m.
    """

    axes: ClassVar[Axes] = {
        "stream": ("layer", "place"),
        "attention": ("layer", "place"),
        "heads": ("layer", "head"),
        "clean": (),
        "corrupted": (),
    }
    shown = "stream"
    labels: ClassVar[Labels] = {"place": PLACES}

    def reads(self) -> tuple[str, ...]:
        return tuple(SITES.values())

    def check(self, subject: Subject) -> None:
        check_pairs(subject)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        names = {kind: sites(layers, site) for kind, site in SITES.items()}
        heads, length = subject.run.config.model.heads, subject.run.task.length(subject.condition)

        def one(batch: Batch, inputs: Int[jax.Array, "B T"]) -> dict[str, jax.Array]:
            changed = batch._replace(inputs=inputs)
            told = [name for some in names.values() for name in some]
            rows, each = last_rows(subject, batch), jnp.arange(len(batch.inputs))
            outputs, clean = subject.apply(batch, told)
            other = subject.apply(changed)[0]
            right, wrong = right_answer(batch), jnp.argmax(last_outputs(subject, other, batch), axis=-1)

            def margin(outputs: jax.Array) -> jax.Array:
                logits = last_outputs(subject, outputs, batch)
                return jnp.mean(logits[each, right] - logits[each, wrong])  # 0 where both answers are one

            def patched(kind: str, row: Bool[jax.Array, "L B T"], head: Any = None) -> jax.Array:
                change = {
                    name: edits.replace(clean[name], rows=row[i], heads=None if head is None else head[i])
                    for i, name in enumerate(names[kind])
                }
                return margin(subject.apply(changed, (), change)[0])

            count, index = len(layers), jnp.arange(length)
            at = jnp.stack([index == batch.last_evidence[:, -1, None], index == rows[:, None]])  # [place, B, T]
            place = jnp.concatenate([at, ~jnp.any(at, axis=0, keepdims=True)])
            chosen = jnp.einsum("lm,pbt->lpmbt", jnp.eye(count), place.astype(jnp.float32)) > 0
            by_place = chosen.reshape(-1, *chosen.shape[2:])  # [layer and place, layers, B, T]
            everywhere = jnp.ones((count, *place.shape[1:]), bool)
            alone = jnp.eye(count * heads, dtype=bool).reshape(-1, count, heads)
            found = {
                kind: jax.lax.map(lambda row, kind=kind: patched(kind, row), by_place).reshape(count, -1)
                for kind in ("stream", "attention")
            }
            by_head = jax.lax.map(lambda head: patched("heads", everywhere, head), alone)
            found["heads"] = by_head.reshape(count, heads)
            return found | {"clean": margin(outputs), "corrupted": margin(other)}

        batch = subject.batch(key)  # whose pieces may have a single item, so that it is corrupted as a whole
        found = subject.averaged(batch, one, beside=corrupted(batch))
        gap = found["clean"] - found["corrupted"]
        shares = {kind: (found[kind] - found["corrupted"]) / jnp.where(gap == 0, 1.0, gap) for kind in SITES}
        return found | shares
