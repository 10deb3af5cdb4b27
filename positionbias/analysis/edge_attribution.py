"""Edge attribution: what gradients say each edge is worth, beside what it is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.analysis.base import Axes, Labels, Subject
from positionbias.analysis.edge_scores import agreement, error, estimated, exact, of_items, shares
from positionbias.analysis.edges import OfEdges, Pair, Values, graph
from positionbias.arrays import Float, Key
from positionbias.spec import member, require

METHODS = ("eap", "eap_ig", "random")
DRAWS = 8  # of random rankings
MOST = 1000


@member("analyses", "edge_attribution")
@dataclasses.dataclass(frozen=True)
class EdgeAttribution(OfEdges):
    """Share of the margin that each edge takes away, foretold by gradients (EAP, EAP-IG) and measured by patching.

    Syed et al. 2023 (arXiv 2310.10348) take the gradient of the clean run, "eap"; Hanna et al. 2024 (arXiv 2403.17806)
    the mean gradient of runs on `steps` embeddings between the corrupted and the clean one, "eap_ig"; each times the
    difference of what the sender sends (`edge_scores.estimated`). "exact" is "lost" of `path_patching`. All are shares
    of m clean - m corrupted, and of one sign: what an answer needs is above 0. Whether an estimate ranks edges as they
    are is told by Spearman's correlation with "exact" over all edges: "agreement" of signed shares, and
    "agreement_of_sizes" of their sizes, by which circuits are cut. Those of random numbers are the control, the mean
    over eight rankings. How far an estimate is from what edges are worth is "error", summed |estimate - exact| over
    summed |exact|, of all edges: 0 where it is exact, 1 where it is 0 everywhere; the control has "exact" itself, dealt
    out to edges in the eight random orders.
    """

    steps: int = 5

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("exact", "eap", "eap_ig"), ("sender", "reader")),
        **dict.fromkeys(("agreement", "agreement_of_sizes", "error"), ("method",)),
    }
    shown = "exact"
    labels: ClassVar[Labels] = {"method": METHODS}

    def __post_init__(self) -> None:
        require(1 <= self.steps <= MOST, "steps", self.steps, f"a whole number from 1 to {MOST}")

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        return {**self.labels, **graph(subject).labels}

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        parts = graph(subject)
        drawn, ranked = jax.random.split(key)

        def one(pair: Pair, clean: Values, other: Values) -> dict[str, jax.Array]:
            return {
                "exact": exact(pair, pair.clean, other),
                "eap": estimated(pair, clean, other, 1),
                "eap_ig": estimated(pair, clean, other, self.steps),
            }

        found = of_items(subject, parts, subject.batch(drawn), one)
        clean, corrupted = found.pop("clean"), found.pop("corrupted")
        change = found | {"exact": found["exact"] - clean}
        told = {
            name: jnp.where(parts.real, shares(x, jnp.zeros(()), corrupted - clean), 0.0) for name, x in change.items()
        }
        edges = {name: x[np.nonzero(parts.real)] for name, x in told.items()}
        random = jax.random.normal(ranked, (DRAWS, len(edges["exact"])))

        def by_method(of: dict[str, Float[jax.Array, "E"]]) -> Float[jax.Array, "3"]:
            control = jnp.mean(jax.lax.map(lambda x: agreement(x, of["exact"]), random))
            return jnp.stack([*(agreement(of[name], of["exact"]) for name in METHODS[:2]), control])

        sizes = {name: jnp.abs(x) for name, x in edges.items()}
        dealt = jax.lax.map(lambda x: error(edges["exact"][jnp.argsort(x)], edges["exact"]), random)
        errors = jnp.stack([*(error(edges[name], edges["exact"]) for name in METHODS[:2]), jnp.mean(dealt)])
        return told | {"agreement": by_method(edges), "agreement_of_sizes": by_method(sizes), "error": errors}
