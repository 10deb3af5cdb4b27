"""Path patching: what each edge between two parts of a model carries of the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Axes, Labels, Subject
from positionbias.analysis.edge_scores import exact, of_items, shares
from positionbias.analysis.edges import OfEdges, Pair, Values, graph
from positionbias.arrays import Key
from positionbias.spec import member

EDGE = ("sender", "reader")


@member("analyses", "path_patching")
@dataclasses.dataclass(frozen=True)
class PathPatching(OfEdges):
    """Share of the margin that one edge takes away from a clean run, and gives back to a corrupted one.

    Goldowsky-Dill et al. 2023 (arXiv 2304.05969), Wang et al. 2022 (arXiv 2211.00593): what a sender adds to the stream
    is replaced by what it adds in the run on the other prompt, in what one reader reads and nowhere else; parts behind
    the reader see what it then makes of it. Prompts and m are those of `patching`, edges those of
    `positionbias.analysis.edges`. "lost" is (m clean - m) / (m clean - m corrupted) with a corrupted edge in the clean
    run, "restored" (m - m corrupted) / (m clean - m corrupted) with a clean edge in the corrupted run, 0 where there is
    no edge. The column "output" is the direct effect of each sender. They do not add up to 1: "all_lost" and
    "all_restored", of all edges at once, are 1. "clean" and "corrupted" are m.
    """

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("lost", "restored"), EDGE),
        **dict.fromkeys(("all_lost", "all_restored", "clean", "corrupted"), ()),
    }
    shown = "lost"

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        return graph(subject).labels

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        parts = graph(subject)
        every = jnp.asarray(parts.real, jnp.float32)

        def one(pair: Pair, clean: Values, other: Values) -> dict[str, jax.Array]:
            return {
                "lost": exact(pair, pair.clean, other),
                "restored": exact(pair, pair.corrupted, clean),
                "all_lost": pair.patched(pair.clean, other, every),
                "all_restored": pair.patched(pair.corrupted, clean, every),
            }

        found = of_items(subject, parts, subject.batch(key), one)
        clean, other = found["clean"], found["corrupted"]
        told = {name: shares(x, clean, other) for name, x in found.items() if name.endswith("lost")}
        told |= {name: shares(x, other, clean) for name, x in found.items() if name.endswith("restored")}
        return found | told | {name: jnp.where(parts.real, told[name], 0.0) for name in ("lost", "restored")}
