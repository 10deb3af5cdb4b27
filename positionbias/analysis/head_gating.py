"""Causal head gating: which heads an answer needs, which ones it does without, and which ones harm it."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from positionbias.analysis.alignment import descended
from positionbias.analysis.base import Axes, Subject
from positionbias.analysis.heads import Gating, dealt, drawn_gates, gated, openness, without
from positionbias.arrays import Bool, Float, Key
from positionbias.spec import member

KINDS = ("facilitating", "interfering", "irrelevant")


@member("analyses", "head_gating")
@dataclasses.dataclass(frozen=True)
class HeadGating(Gating):
    """Gates of heads, trained on the frozen model's own loss, and pushed to 1 and to 0 (Nam et al. 2025).

    "Causal Head Gating", arXiv 2505.13737. A head's output is multiplied by sigmoid(a). Gates that are drawn evenly
    learn for `updates` steps to lower -log p(answer) - w mean(clip(a, -4, 4)) with w = 0, and from there two copies
    with w = `weight` (G+) and with its negative (G-); Adam with the learning rate `rate`, gradients of norm 1 at most,
    fresh items at every step; the mean over `seeds` of these. A head is "facilitating" by G-, "interfering" by 1 - G+
    and "irrelevant" by G+ (1 - G-). The proof beside them are changes of the log-probability of answers, in nats, where
    all heads that have more than a half of each are set to 0, seed by seed: "without_facilitating" should be below 0,
    "without_irrelevant" about 0, and "without_interfering" above, or 0 where no head interferes. The control of each
    is "random_facilitating" and so on, the change without as many random heads of all, the mean over eight draws.
    """

    weight: float = 0.1
    updates: int = 500
    seeds: int = 4
    rate: float = 1.0
    batch: int = 32

    axes: ClassVar[Axes] = {
        **dict.fromkeys(KINDS, ("layer", "head")),
        **dict.fromkeys((f"{of}_{kind}" for of in ("without", "random") for kind in KINDS), ()),
    }
    shown = "facilitating"

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        heads = subject.run.config.model.heads
        started, judged, drawn = jax.random.split(key, 3)
        each = functools.partial(self._gates, subject, layers, heads)
        high, low = jax.lax.map(each, jax.random.split(started, self.seeds))  # [seeds, L, N] each
        found = {"facilitating": low, "interfering": 1 - high, "irrelevant": high * (1 - low)}
        batch = subject.batch(judged)
        intact = subject.accuracy(batch)["log_probability"]

        def change(closed: Bool[jax.Array, "L N"]) -> jax.Array:
            return subject.accuracy(batch, without(layers, closed))["log_probability"] - intact

        for name in KINDS:
            closed = found[name] > 0.5
            found[f"without_{name}"] = jax.lax.map(change, closed)
            keys = jax.random.split(drawn, self.seeds)
            found[f"random_{name}"] = jax.lax.map(lambda x: dealt(change, *x), (closed, keys))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)

    def _gates(
        self, subject: Subject, layers: list[int], heads: int, key: Key[jax.Array, ""]
    ) -> tuple[Float[jax.Array, "L N"], Float[jax.Array, "L N"]]:
        """Gates that were pushed up, and gates that were pushed down."""
        rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(self.rate))
        drawn, *keys = jax.random.split(key, 4)

        def trained(a: jax.Array, key: jax.Array, weight: float) -> jax.Array:
            def loss(a: jax.Array, key: jax.Array, _: jax.Array) -> jax.Array:
                batch = subject.batch(key, self.batch)
                outputs = subject.apply(batch, (), gated(layers, jax.nn.sigmoid(a)))[0]
                return -jnp.mean(subject.answers(outputs, batch)["log_probability"]) - weight * openness(a)

            return descended(loss, a, rule, key, self.updates)  # type: ignore[no-any-return]

        a = trained(drawn_gates(drawn, layers, heads), keys[0], 0.0)
        return tuple(jax.nn.sigmoid(trained(a, keys[i + 1], w)) for i, w in enumerate((self.weight, -self.weight)))  # type: ignore[return-value]
