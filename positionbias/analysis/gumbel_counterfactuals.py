"""Gumbel counterfactuals: what would have been said, by the same luck, had the model or its input been another."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject
from positionbias.analysis.heads import HEADS, without
from positionbias.analysis.pairs import check_pairs, corrupted
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.spec import member
from positionbias.tasks.base import Batch

BY_HEAD = ("answers", "others")
BY_SWAP = ("swap_answer", "swap_answers", "swap_others")


def hindsight(
    key: Key[jax.Array, ""], logits: Float[jax.Array, "... V"], said: Int[jax.Array, "..."]
) -> Float[jax.Array, "... V"]:
    """Gumbel noise G given that argmax(logits + G) is what was said (Maddison et al. 2014, arXiv 1411.0030).

    The largest of all logits + G is a Gumbel more than their log-sum-exp, whichever it is; what was said has it, and
    the others are Gumbels more than their logits that are no larger.
    """
    first, rest = jax.random.split(key)
    top = jax.random.gumbel(first, said.shape) + jax.nn.logsumexp(logits, axis=-1)
    free = logits + jax.random.gumbel(rest, logits.shape)
    below = -jnp.logaddexp(-free, -top[..., None])
    chosen = said[..., None] == jnp.arange(logits.shape[-1])
    return jnp.where(chosen, top[..., None], below) - logits


@member("analyses", "gumbel_counterfactuals")
@dataclasses.dataclass(frozen=True)
class GumbelCounterfactuals(Analysis):
    """Shares of rows that say something else under an intervention with the noise that they were said with.

    Ravfogel et al. 2024 (arXiv 2411.07180): what a model samples is argmax(logits + G) of Gumbel noise G. Each row says
    something drawn at temperature 1; G is drawn given that (`hindsight`), and what the changed model says with the same
    noise is the counterfactual. Rows are asked one by one, of the item's own inputs: what one says is not read by the
    next. "reproduced" is the share of rows that the unchanged model says again, 1 but for rounding.

    With each head set to 0, by head: "answers", the share of answers that change, and "others", that of all rows that
    do not answer (and are valid): the side effects. With the token of the last answer's evidence replaced by that of
    the next item, of the items where it is another one: "swap_answer", the last answer; "swap_answers", the other
    answers whose evidence is elsewhere, 0 where there are none; "swap_others", rows that do not answer. Arrays that end
    in "_fresh" are the same where the changed model has noise of its own, as if it were sampled anew, which also
    changes what the intervention leaves alone; "resampled_answers" and "resampled_others" are what fresh noise changes
    by itself, in the model as it is.
    """

    axes: ClassVar[Axes] = {
        **{f"{name}{noise}": ("layer", "head") for name in BY_HEAD for noise in ("", "_fresh")},
        **{f"{name}{noise}": () for name in BY_SWAP for noise in ("", "_fresh")},
        **dict.fromkeys(("resampled_answers", "resampled_others", "reproduced"), ()),
    }
    shown = "answers"

    def reads(self) -> tuple[str, ...]:
        return (HEADS,)

    def check(self, subject: Subject) -> None:
        check_pairs(subject)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        heads = subject.run.config.model.heads

        def one(batch: Batch, beside: tuple[Int[jax.Array, "B T"], Key[jax.Array, "B"]]) -> dict[str, jax.Array]:
            inputs, keys = beside
            swapped = batch._replace(inputs=inputs)
            logits, _ = subject.apply(batch)
            drawn, seen, anew = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
            said = jax.vmap(jax.random.categorical)(drawn, logits)  # [B, T]
            same = jax.vmap(hindsight)(seen, logits, said)
            fresh = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(anew)

            rows, index = subject.run.answer_rows(batch), jnp.arange(said.shape[1])
            answers = rows[..., None] == index  # [B, A, T]
            others = ~jnp.any(answers, axis=1) & jnp.broadcast_to(batch.tokens.valid > 0, said.shape)
            swap = (batch.inputs != swapped.inputs)[:, None]  # [B, 1, T], of one token or none
            reads = jnp.any(batch.evidence[..., None] == index, axis=2)  # [B, A, T]
            apart = ~jnp.any(reads & swap, axis=2)[:, :-1]

            def change(noise: Float[jax.Array, "B T V"], outputs: Float[jax.Array, "B T V"]) -> Bool[jax.Array, "B T"]:
                return jnp.argmax(outputs + noise, axis=-1) != said

            def shares(changed: Bool[jax.Array, "B T"]) -> dict[str, jax.Array]:
                answered = jnp.any(answers & changed[:, None], axis=2)
                return {"answers": jnp.mean(answered), "others": jnp.mean(_mean(changed, others))}

            def by_swap(changed: Bool[jax.Array, "B T"]) -> dict[str, jax.Array]:
                answered, differs = jnp.any(answers & changed[:, None], axis=2), jnp.any(swap, axis=(1, 2))
                found = {
                    "swap_answer": answered[:, -1].astype(jnp.float32),
                    "swap_answers": _mean(answered[:, :-1], apart),
                    "swap_others": _mean(changed, others),
                }
                return {name: jnp.mean(x * differs) for name, x in found.items()} | {"swapped": jnp.mean(differs)}

            def without_one(chosen: Bool[jax.Array, "L N"]) -> dict[str, jax.Array]:
                outputs, _ = subject.apply(batch, (), without(layers, chosen))
                return shares(change(same, outputs)) | _fresh(shares(change(fresh, outputs)))

            alone = jnp.eye(len(layers) * heads, dtype=bool).reshape(-1, len(layers), heads)
            found = jax.lax.map(without_one, alone)
            told = {name: x.reshape(len(layers), heads) for name, x in found.items()}
            outputs, _ = subject.apply(swapped)
            told |= by_swap(change(same, outputs)) | _fresh(by_swap(change(fresh, outputs)))
            told |= {f"resampled_{name}": x for name, x in shares(change(fresh, logits)).items()}
            return told | {"reproduced": 1 - jnp.mean(change(same, logits))}

        asked, noise = jax.random.split(key)
        batch = subject.batch(asked)  # whose pieces may have a single item, so that others are told as a whole
        keys = jax.random.split(noise, subject.items)
        found = subject.averaged(batch, one, beside=(corrupted(batch), keys))
        count = jnp.where(found["swapped"] == 0, 1.0, found["swapped"])
        return {name: found[name] / (count if name.startswith("swap") else 1.0) for name in self.axes}


def _fresh(found: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {f"{name}_fresh": x for name, x in found.items()}


def _mean(what: Bool[jax.Array, "B N"], of: Bool[jax.Array, "B N"]) -> Float[jax.Array, "B"]:
    """The share of those places that are it; 0 where there are none."""
    return jnp.sum(what & of, axis=1) / jnp.maximum(jnp.sum(of, axis=1), 1)
