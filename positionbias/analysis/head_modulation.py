"""Head modulation: answers where some heads' scores of the context are raised or lowered."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import PATTERN, SCORES, Axes, Labels, Subject, evenly, patterns, sites
from positionbias.analysis.chosen_heads import ChosenHeads
from positionbias.analysis.heads import DRAWS, others, top
from positionbias.analysis.segments import asked, check_context, context_rows
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def raised(gain: Float[jax.Array, "N"], columns: Bool[jax.Array, "S"], rows: Int[jax.Array, "B A"]) -> edits.Edit:
    """Scores s of these columns, in these rows, as s + gain |s| by head: an edit of `scores`."""

    def change(was: jax.Array) -> jax.Array:
        more = jnp.where(columns & jnp.isfinite(was), jnp.abs(was), 0.0)  # a bias may hide by minus infinity
        return was + gain[:, None, None] * more

    return edits.Edit(change, None, rows, ("scores",))


@member("analyses", "head_modulation")
@dataclasses.dataclass(frozen=True)
class HeadModulation(ChosenHeads):
    """Log-probability of answers where scores s of context columns become s + a |s| in some heads, by the strength a.

    In rows that answer, before the softmax, as Liu et al. 2024 raise attention to images (arXiv 2407.21771); in heads
    chosen by how much they attend to it, as Ibn Arif et al. 2025 modulate heads (arXiv 2501.12206). "context" is by
    head the attention of rows that answer to the context, rows 0 to C - 1, "context_even" that of rows that attend
    evenly. By strength, on fresh items: "attentive" modulates the `share` of heads that attend to the context most,
    "neglecting" the `share` that do least, "any" as many heads drawn eight times, the mean, the control of both.
    "steered" modulates all heads, each by a times its attention to other rows over the mean of that, so that those out
    of balance are moved most, and "steered_shuffled" by the same numbers dealt to heads anew eight times, its control.
    "accuracy_attentive" and the like are accuracies. At a = 0 all are those of the model as it is.
    """

    share: float = 0.25

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("context", "context_even"), ("layer", "head")),
        **{
            f"{what}{which}": ("strength",)
            for what in ("", "accuracy_")
            for which in ("attentive", "neglecting", "any", "steered", "steered_shuffled")
        },
    }
    shown = "attentive"
    labels: ClassVar[Labels] = {"strength": tuple(f"{strength:g}" for strength in STRENGTHS)}

    def reads(self) -> tuple[str, ...]:
        return (PATTERN, SCORES)

    def check(self, subject: Subject) -> None:
        check_context(subject, self)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        columns = context_rows(subject)

        def shares(batch: Batch) -> dict[str, jax.Array]:
            found = asked(patterns(subject, layers, batch), subject.run.answer_rows(batch))  # [L, B, N, A, T]
            both = {"context": found, "context_even": evenly(found)}
            return {name: jnp.mean(jnp.sum(x * columns, axis=-1), axis=(1, 3)) for name, x in both.items()}

        first, fresh, drawn, dealt = jax.random.split(key, 4)
        told = subject.averaged(subject.batch(first), shares)
        context = told["context"]
        many, nobody = self.chosen(context.size), jnp.zeros(context.shape, bool)
        away = jnp.maximum(1 - context, 0.0)
        mean = jnp.mean(away)
        steer = away / jnp.where(mean > 0, mean, 1.0)
        weights = {  # of heads, draws [M, L, N] each
            "attentive": top(context, many)[None],
            "neglecting": top(-context, many)[None],
            "any": jax.vmap(lambda key: others(key, nobody, many))(jax.random.split(drawn, DRAWS)),
            "steered": steer[None],
            "steered_shuffled": jax.vmap(lambda key: jax.random.permutation(key, steer.reshape(-1)))(
                jax.random.split(dealt, DRAWS)
            ).reshape(-1, *steer.shape),
        }
        gains = jnp.concatenate([x.astype(jnp.float32) for x in weights.values()])
        gains = (gains[:, None] * jnp.array(STRENGTHS)[:, None, None]).reshape(-1, *context.shape)

        def one(batch: Batch) -> dict[str, jax.Array]:
            rows = subject.run.answer_rows(batch)

            def under(gain: Float[jax.Array, "L N"]) -> dict[str, jax.Array]:
                change = {name: raised(gain[i], columns, rows) for i, name in enumerate(sites(layers, SCORES))}
                return jax.tree.map(jnp.mean, subject.answers(subject.apply(batch, (), change)[0], batch))

            return jax.lax.map(under, gains)

        found = subject.averaged(subject.batch(fresh), one)
        for what, prefix in (("log_probability", ""), ("accuracy", "accuracy_")):
            left = found[what].reshape(-1, len(STRENGTHS))
            for name, draws in weights.items():
                told[prefix + name], left = jnp.mean(left[: len(draws)], axis=0), left[len(draws) :]
        return told
