"""Overlap of circuits: whether two sets of items are answered by the same edges."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Axes, Labels, Subject
from positionbias.analysis.circuits import Cut, faithfulness, overlap, used
from positionbias.analysis.edges import graph
from positionbias.arrays import Bool, Int, Key
from positionbias.spec import member, require, unknown
from positionbias.tasks.base import Batch, find_condition
from positionbias.tokens import of_both, own_and_shared

HALVES = ("items", "evidence")
SETS = ("first", "second")
KINDS = ("circuits", "random", "chance")


@member("analyses", "circuit_overlap")
@dataclasses.dataclass(frozen=True)
class CircuitOverlap(Cut):
    """Circuits of two sets of items: what they share, and how well each does with the other's items.

    Merullo et al. 2023 (arXiv 2310.08744). Circuits are cut as in `circuit`. The second set is other `items`
    (`against`), the later half by where their evidence stands against the earlier half ("evidence"), or those of
    another condition of the task, by its name. "edges" are common edges by those of either circuit, "nodes" the heads
    and MLPs on a way from the input to the output likewise: of the two "circuits", of two of random scores cut by the
    same rule (the mean over eight pairs), and by "chance", the mean over random sets of as many (hypergeometric), with
    "edges_p" and "nodes_p" the chance of as many in common. Overlap is not evidence that the work is shared,
    faithfulness is (Hanna et al. 2024, arXiv 2403.17806): on fresh items of each set, "own" is that of its circuit,
    "crossed" that of the other set's, and "by_random" the mean of eight random ones.
    """

    against: str = "items"

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("edges", "nodes"), ("pair", "size")),
        **dict.fromkeys(("edges_p", "nodes_p"), ("size",)),
        **dict.fromkeys(("own", "crossed", "by_random"), ("set", "size")),
    }
    shown = "edges"
    labels: ClassVar[Labels] = {"pair": KINDS, "set": SETS}

    def check(self, subject: Subject) -> None:
        super().check(subject)
        conditions = [one.name for one in subject.run.task.conditions()]
        if self.against not in (*HALVES, *conditions):
            raise unknown("--analyses: against", "set of items", self.against, (*HALVES, *conditions))
        # Other items of the condition that is asked are "items": the same question under two names.
        allowed = f"{' or '.join(HALVES)}, or another condition than {subject.condition.name}, which is asked"
        require(self.against != subject.condition.name, "against", self.against, allowed)

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        return {**self.labels, "size": self.size_names}

    def _sets(self, subject: Subject, key: Key[jax.Array, ""]) -> list[tuple[Subject, Batch]]:
        """Both, with the condition of each."""
        if self.against == "evidence":
            batch = subject.batch(key, 2 * subject.items)
            order = jnp.argsort(batch.last_evidence[:, -1], stable=True)
            return [(subject, _chosen(batch, order[at : at + subject.items])) for at in (0, subject.items)]
        other = subject
        if self.against != "items":
            other = dataclasses.replace(subject, condition=find_condition(subject.run.task, self.against, "against"))
        return [(of, of.batch(one)) for of, one in zip((subject, other), jax.random.split(key), strict=True)]

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        parts = graph(subject)
        scored, judged, *drawn = jax.random.split(key, 4)
        both = [self.circuits(parts, self.scored(of, parts, batch)) for of, batch in self._sets(subject, scored)]
        random = [self.at_random(parts, key) for key in drawn]  # [draws, sizes, S, R] each

        def told(first: Bool[jax.Array, "S R"], second: Bool[jax.Array, "S R"]) -> jax.Array:
            edges = overlap(first[parts.real], second[parts.real])
            return jnp.stack([jnp.stack(edges), jnp.stack(overlap(used(parts, first), used(parts, second)))])

        each = jax.lax.map(lambda pair: told(*pair), tuple(both))  # [sizes, edges or nodes, three numbers]
        by_random = jax.lax.map(lambda pair: jax.lax.map(lambda two: told(*two), pair), tuple(random))
        index = jnp.stack([each[..., 0], jnp.mean(by_random[..., 0], axis=0), each[..., 1]])  # [pair, sizes, both]
        found = {"edges": index[..., 0], "nodes": index[..., 1], "edges_p": each[:, 0, 2], "nodes_p": each[:, 1, 2]}

        count, rows = len(self.sizes), []
        asked = jnp.concatenate([*both, random[0].reshape(-1, *parts.real.shape)])
        for of, batch in self._sets(subject, judged):
            kept = faithfulness(of, parts, batch, asked).reshape(-1, count)
            rows.append((kept[0], kept[1], jnp.mean(kept[2:], axis=0)))
        (own, crossed, by_chance), (crossed_too, own_too, by_chance_too) = rows
        pairs = {"own": (own, own_too), "crossed": (crossed, crossed_too), "by_random": (by_chance, by_chance_too)}
        return found | {name: jnp.stack(pair) for name, pair in pairs.items()}


def _chosen(batch: Batch, which: Int[jax.Array, "n"]) -> Batch:
    """Some items of a batch."""
    own, shared = own_and_shared(batch.tokens)
    kept, tokens = jax.tree.map(lambda x: x[which], (batch._replace(tokens=None), own))  # type: ignore[arg-type]
    chosen: Batch = kept._replace(tokens=of_both(tokens, shared))
    return chosen
