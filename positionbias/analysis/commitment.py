"""Commitment: the layer from which on an answer is settled, as it is read out and as it can still be changed."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Subject, last_rows, sites
from positionbias.analysis.logit_lens import read_out, settled
from positionbias.analysis.pairs import check_pairs, corrupted
from positionbias.arrays import Bool, Int, Key
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "commitment")
@dataclasses.dataclass(frozen=True)
class Commitment(Analysis):
    """Shares of items whose last answer is settled at each layer, in the lens and by patching.

    After distributional semantics tracing (arXiv 2510.06107), whose commitment layer is where the representation
    diverges and never comes back. "lens": the first layer behind which the stream, read out as the last one is (see
    `logit_lens`), says what the model says and goes on to. "causal": an item is corrupted by another token in place of
    its evidence, that of the next item (see `patching`); where it then says something else, the last layer in front of
    which the clean stream, put into all rows but the one that answers, makes it say the same again. Behind it the row
    has all that it takes of the others. "lens_right" and "lens_wrong", "causal_right" and "causal_wrong" are shares of
    the items whose answer is right and wrong; 0 where there are none. They add up to 1, in "causal" without the items
    that no layer restores, as those whose evidence stands in the row that answers.

    "lens_others" is "lens" with the readings behind all layers but the last of the next item, the control: earlier than
    the last layer only if readings do not depend on the item. "restored" is by layer the share that the patch restores,
    "restored_others" with the clean stream of the item before. "led" is the share of items, of those that are restored,
    whose lens is settled at the causal layer or before; "changed" the share that corruption makes say something else,
    and "accuracy" that of last answers.
    """

    axes: ClassVar[Axes] = {
        f"{what}{which}": ("layer",)
        for what, kinds in (
            ("lens", ("", "_right", "_wrong", "_others")),
            ("causal", ("", "_right", "_wrong")),
            ("restored", ("", "_others")),
        )
        for which in kinds
    } | dict.fromkeys(("led", "changed", "accuracy"), ())
    shown = "lens"
    alike = (STREAM,)
    whole = True

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def check(self, subject: Subject) -> None:
        check_pairs(subject)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        before = ["embedding", *sites(layers[:-1], STREAM)]  # the stream in front of every layer

        def one(batch: Batch, inputs: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            wronged, other = (batch._replace(inputs=x) for x in inputs)

            def said(outputs: jax.Array) -> Int[jax.Array, "B"]:
                return subject.said(outputs, batch)[:, -1]

            outputs, clean = subject.apply(batch, before)
            _, foreign = subject.apply(other, before)
            told = said(outputs)
            elsewhere = jnp.arange(batch.weights.shape[-1]) != last_rows(subject, batch)[:, None]  # [B, T]

            def restored(streams: dict[str, jax.Array], layer: jax.Array) -> Bool[jax.Array, "B"]:
                change = {
                    name: edits.replace(streams[name], rows=elsewhere & (layer == i)) for i, name in enumerate(before)
                }
                return said(subject.apply(wronged, (), change)[0]) == told

            both = jax.lax.map(lambda i: (restored(clean, i), restored(foreign, i)), jnp.arange(len(layers)))
            return {
                "said": read_out(subject, layers, batch, said).T,
                "changed": said(subject.apply(wronged)[0]) != told,
                "right": subject.answers(outputs, batch)["accuracy"][:, -1] > 0,
                "restored": both[0].T,
                "restored_others": both[1].T,
            }

        batch = subject.batch(key)  # whose pieces may have a single item, so that others are told as a whole
        others = corrupted(batch), jnp.roll(batch.inputs, 1, axis=0)
        return _shares(subject.each(batch, one, beside=others), len(layers))


def _shares(found: dict[str, jax.Array], many: int) -> dict[str, jax.Array]:
    """The arrays of `Commitment` from what is found of every item, [B] or [B, L] each."""
    said, right, changed, back = (found[name] for name in ("said", "right", "changed", "restored"))
    readings, index = said.T, jnp.arange(many)
    others = readings.at[:-1].set(jnp.roll(readings[:-1], -1, axis=1))
    lens, alone = settled(readings == readings[-1]), settled(others == others[-1])
    some = changed & jnp.any(back, axis=1)
    causal = jnp.where(some, many - 1 - jnp.argmax(jnp.flip(back, axis=1), axis=1), -1)

    def share(which: jax.Array, of: jax.Array) -> jax.Array:
        """Of the items `of`, the part that is `which`, [B] or [B, L]."""
        counted = which & of.reshape(-1, *[1] * (which.ndim - 1))
        return jnp.sum(counted, axis=0) / jnp.maximum(jnp.sum(of), 1)

    everyone = jnp.ones_like(right)
    by_lens, by_cause = lens[:, None] == index, causal[:, None] == index
    told = {"lens": share(by_lens, everyone), "lens_others": share(alone[:, None] == index, everyone)}
    told["causal"] = share(by_cause, changed)
    for name, which in (("right", right), ("wrong", ~right)):
        told[f"lens_{name}"] = share(by_lens, which)
        told[f"causal_{name}"] = share(by_cause, which & changed)
    told |= {name: share(found[name], changed) for name in ("restored", "restored_others")}
    ends = {"led": share(lens <= causal, some), "changed": jnp.mean(changed), "accuracy": jnp.mean(right)}
    return told | ends
