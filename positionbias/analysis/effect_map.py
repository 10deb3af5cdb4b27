"""Effect map: what every output loses when one input is another."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, kl
from positionbias.arrays import Key
from positionbias.spec import member, require
from positionbias.tasks.base import Batch


@member("analyses", "effect_map")
@dataclasses.dataclass(frozen=True)
class EffectMap(Analysis):
    """KL divergence, in nats, of every row's output from what it is when the input at one position is another item's.

    D(p(. | x) || p(. | x with x_j of the next item)) at row i, the mean over items where the two inputs differ: an
    interchange of inputs, so that what is put in is as likely there as what was. By row and column j in "effect", 0
    for columns that a row cannot see; of rows that answer in "answers", with what their accuracy loses in "lost".
    "changed" is the share of items whose inputs differ at j; where none does, the others are 0.
    """

    axes: ClassVar[Axes] = {
        "effect": ("row", "position"),
        **dict.fromkeys(("answers", "lost", "changed"), ("position",)),
    }
    shown = "effect"
    any_rows = True

    def reads(self) -> tuple[str, ...]:
        return ()

    def check(self, subject: Subject) -> None:
        subject.require_tokens("a task whose answers are tokens, as these have odds", said=True)
        require(subject.items >= 2, "items", subject.items, "2 or more, as inputs are those of another item")

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        length = subject.run.task.length(subject.condition)

        def one(batch: Batch, others: jax.Array) -> dict[str, jax.Array]:
            outputs, _ = subject.apply(batch)
            right = subject.answers(outputs, batch)["accuracy"]
            rows, each = subject.run.answer_rows(batch), jnp.arange(len(outputs))[:, None]

            def with_other(at: jax.Array) -> dict[str, jax.Array]:
                inputs = batch.inputs.at[:, at].set(others[:, at])
                differ = jnp.any((inputs != batch.inputs).reshape(len(inputs), -1), axis=1).astype(jnp.float32)
                changed, _ = subject.apply(batch._replace(inputs=inputs))
                apart = kl(outputs, changed)  # [B, T]
                lost = right - subject.answers(changed, batch)["accuracy"]
                return {
                    "effect": jnp.mean(differ[:, None] * apart, axis=0),
                    "answers": jnp.mean(differ * jnp.mean(apart[each, rows], axis=1)),
                    "lost": jnp.mean(differ * jnp.mean(lost, axis=1)),
                    "changed": jnp.mean(differ),
                }

            return jax.lax.map(with_other, jnp.arange(length))

        batch = subject.batch(key)  # whose pieces may have a single item, so that it is paired as a whole
        found = subject.averaged(batch, one, beside=jnp.roll(batch.inputs, -1, axis=0))
        share = jnp.where(found["changed"] == 0, 1.0, found["changed"])
        of_those = {name: found[name] / share for name in ("answers", "lost")}
        return found | of_those | {"effect": (found["effect"] / share[:, None]).T}
