"""Contrastive head gating: the heads without which one condition is forgotten and another is not."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from positionbias.analysis.alignment import descended
from positionbias.analysis.base import Axes, Labels, Subject
from positionbias.analysis.heads import Gating, dealt, drawn_gates, gated, openness, without
from positionbias.arrays import Bool, Float, Key
from positionbias.spec import member, require
from positionbias.tasks.base import find_condition

FARTHEST = 5.0  # nats between the two log-probabilities of an item, beyond which nothing is gained
SLOWER = 0.1  # the last learning rate, by the first
CONDITIONS = ("retained", "forgotten")
KEPT = ("all", "gated", "random")


@member("analyses", "contrastive_head_gating")
@dataclasses.dataclass(frozen=True)
class ContrastiveHeadGating(Gating):
    """Gates of heads that keep the condition that is asked, and lose the condition `forget` (Nam et al. 2025).

    "Causal Head Gating", arXiv 2505.13737, equation 2. A head's output is multiplied by sigmoid(a). Gates that are
    drawn evenly learn for `updates` steps to lower log p_F - log p_R - w mean(clip(a, -4, 4)), where p_R and p_F are
    those of the right answers of an item in both conditions, and their difference is clipped at 5 nats to both sides;
    w = `weight` keeps the heads that neither needs (the paper's appendix has it negative; the equation is followed).
    Adam with the learning rate `rate`, which falls to a tenth of it, and fresh items at every step, which are the same
    in both conditions where the task pairs them. "gates" are the mean over `seeds` of these.

    The proof is "accuracy" and "log_probability" (nats) in both conditions with "all" heads, without those whose gate
    is a half at most ("gated"), and without as many "random" ones (the mean over eight draws), seed by seed: gates
    that tell the two apart leave what is "retained" and not what is "forgotten". "removed" is the share of heads that
    are taken out.
    """

    forget: str
    weight: float = 0.1
    updates: int = 500
    seeds: int = 4
    rate: float = 0.1
    batch: int = 64

    axes: ClassVar[Axes] = {
        "gates": ("layer", "head"),
        **dict.fromkeys(("accuracy", "log_probability"), ("condition", "kept")),
        "removed": (),
    }
    shown = "gates"
    labels: ClassVar[Labels] = {"condition": CONDITIONS, "kept": KEPT}

    def check(self, subject: Subject) -> None:
        allowed = f"another condition than {subject.condition.name}, which is asked"
        require(self._other(subject).condition != subject.condition, "forget", self.forget, allowed)

    def _other(self, subject: Subject) -> Subject:
        """The subject in the condition that is forgotten."""
        return dataclasses.replace(subject, condition=find_condition(subject.run.task, self.forget, "forget"))

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        both = (subject, self._other(subject))
        started, judged, mixed = jax.random.split(key, 3)
        gates = jax.lax.map(lambda key: self._gates(both, layers, key), jax.random.split(started, self.seeds))
        batches = [one.batch(judged) for one in both]

        def told(closed: Bool[jax.Array, "L N"]) -> dict[str, Float[jax.Array, "2"]]:
            edit = without(layers, closed)
            found = [one.accuracy(batch, edit) for one, batch in zip(both, batches, strict=True)]
            return jax.tree.map(lambda *x: jnp.stack(x), *found)

        def of(closed: Bool[jax.Array, "L N"], key: Key[jax.Array, ""]) -> dict[str, Float[jax.Array, "2 3"]]:
            three = (told(jnp.zeros_like(closed)), told(closed), dealt(told, closed, key))
            return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *three)

        closed = gates <= 0.5  # [seeds, L, N]
        found = jax.lax.map(lambda x: of(*x), (closed, jax.random.split(mixed, self.seeds)))
        found |= {"gates": gates, "removed": jnp.mean(closed, axis=(1, 2))}
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)

    def _gates(
        self, both: tuple[Subject, Subject], layers: list[int], key: Key[jax.Array, ""]
    ) -> Float[jax.Array, "L N"]:
        """The gates of one seed."""
        started, trained = jax.random.split(key)

        def loss(a: Float[jax.Array, "L N"], key: Key[jax.Array, ""], _: jax.Array) -> jax.Array:
            edit, right = gated(layers, jax.nn.sigmoid(a)), []
            for one in both:
                batch = one.batch(key, self.batch)
                found = one.answers(one.apply(batch, (), edit)[0], batch)["log_probability"]
                right.append(jnp.mean(found, axis=1))
            retained, forgotten = right
            apart = jnp.clip(forgotten - retained, -FARTHEST, FARTHEST)
            return jnp.mean(apart) - self.weight * openness(a)

        begun = drawn_gates(started, layers, both[0].run.config.model.heads)
        rule = optax.adam(optax.linear_schedule(self.rate, SLOWER * self.rate, self.updates))
        return jax.nn.sigmoid(descended(loss, begun, rule, trained, self.updates))
