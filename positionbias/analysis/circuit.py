"""A circuit: the few edges that do what the whole model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Axes, Labels, Subject
from positionbias.analysis.circuits import Cut, faithfulness, live
from positionbias.analysis.edges import graph
from positionbias.arrays import Key
from positionbias.spec import member

KINDS = ("circuit", "random")


@member("analyses", "circuit")
@dataclasses.dataclass(frozen=True)
class Circuit(Cut):
    """What circuits of several sizes keep of the margin, and what the model keeps without them.

    Hanna et al. 2024 (arXiv 2403.17806): edges are scored by "eap", "eap_ig" with `steps` (as in `edge_attribution`)
    or "exact"ly (`path_patching`), and taken by the sizes of their scores: "greedy", from the output backwards, or by
    "threshold", the first of all. In a run all others carry what they do of the corrupted prompt. On fresh items,
    "faithfulness" of a circuit C is (m(C) - m corrupted) / (m clean - m corrupted), 1 of all edges and 0 of none;
    "completeness" that of all edges but C (Marks et al. 2024, arXiv 2403.19647), which is small where C leaves nothing
    out. "connected" is the share of all edges that C has on a way from the input to the output. Beside them the mean
    over eight circuits of random scores, cut by the same rule to the same `sizes`, which are shares of all edges.
    """

    axes: ClassVar[Axes] = dict.fromkeys(("faithfulness", "completeness", "connected"), ("edges", "size"))
    shown = "faithfulness"
    labels: ClassVar[Labels] = {"edges": KINDS}

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        return {**self.labels, "size": self.size_names}

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        parts = graph(subject)
        scored, judged, drawn = jax.random.split(key, 3)
        own = self.circuits(parts, self.scored(subject, parts, subject.batch(scored)))
        all_ = jnp.concatenate([own[None], self.at_random(parts, drawn)])  # [1 + draws, sizes, S, R]
        flat = all_.reshape(-1, *parts.real.shape)
        both = jnp.concatenate([flat, parts.real & ~flat])
        kept = faithfulness(subject, parts, subject.batch(judged), both).reshape(2, *all_.shape[:2])
        connected = jax.lax.map(lambda one: jnp.sum(live(parts, one)), flat) / parts.real.sum()

        def by_kind(found: jax.Array) -> jax.Array:
            return jnp.stack([found[0], jnp.mean(found[1:], axis=0)])

        told = {"faithfulness": kept[0], "completeness": kept[1], "connected": connected.reshape(all_.shape[:2])}
        return {name: by_kind(found) for name, found in told.items()}
