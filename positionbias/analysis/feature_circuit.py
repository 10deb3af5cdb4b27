"""A circuit of features: those of all layers that an answer needs, and which of them are made of which."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Axes, Labels, Subject, sites
from positionbias.analysis.circuits import places
from positionbias.analysis.dictionaries import LEARNED, TOP, OfDictionaries
from positionbias.analysis.edge_scores import agreement, shares
from positionbias.analysis.feature_nodes import Features, Neurons, Nodes
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.spec import ConfigError, member, require
from positionbias.tasks.base import Batch

CIRCUITS = ("features", "without errors", "neurons", "random", "complement")
DRAWS = 8  # of random circuits
MOST = 1000
NODES = (*(str(1 + rank) for rank in range(TOP)), "error")


@member("analyses", "feature_circuit")
@dataclasses.dataclass(frozen=True)
class FeatureCircuit(OfDictionaries):
    """The features of all layers that answers need, how few of them are enough, and which are made of which.

    Marks et al. 2024 (arXiv 2403.19647), with dictionaries of the stream behind every layer, learned as
    `sparse_features` does. Nodes are the features of a layer, over all rows, and its error, which the dictionary does
    not explain. Taking a node away is setting it, row by row, to its mean over other items; m = log p - log (1 - p), p
    being the probability of the right answer. "effect" of a node u of a layer is (mean of u - u) . the mean of dm / du
    over `steps` points of the way on which all nodes of its layer go to their means (integrated gradients: effects of
    all nodes of a layer add up to the change of m at its end); of the 8 features of a layer with the largest, chosen by
    other items, and of its error. "effect_exact" is the change of m when the node alone is taken away.

    "faithfulness" of a circuit of as many nodes of all layers as "size" says is (m(C) - m(nothing)) / (m - m(nothing)),
    all other nodes being taken away: "features" with the largest effects, errors among them; these "without errors";
    "neurons", the coordinates of the stream, in the same way; "random" features and errors that are not dead, the mean
    of eight draws; and the "complement", all nodes but those of "features", which is small where these leave nothing
    out.

    "edges" from a node u of a layer to a node d of the next are dm/dd . dd/du . (mean of u - u) at the clean run, what
    d passes on to m of the removal of u; "edges_exact" dm/dd . (d without u - d); "agreement" Spearman's correlation of
    both over all edges between two layers.
    """

    multiple: int = 4
    active: int = 8
    updates: int = 300
    batch: int = 32
    rate: float = 3e-3
    steps: int = 10

    axes: ClassVar[Axes] = {
        "faithfulness": ("circuit", "size"),
        **dict.fromkeys(("effect", "effect_exact"), ("layer", "node")),
        **dict.fromkeys(("edges", "edges_exact"), ("between", "to_node", "node")),
        "agreement": ("between",),
    }
    shown = "faithfulness"
    labels: ClassVar[Labels] = {"circuit": CIRCUITS, "node": NODES, "to_node": NODES}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.steps <= MOST, "steps", self.steps, f"a whole number from 1 to {MOST}")

    def layers(self, subject: Subject) -> list[int]:
        found = super().layers(subject)
        if len(found) < 2:
            raise ConfigError(
                f"--analyses: feature_circuit goes from layer to layer, model.layers = {len(found)};"
                " allowed: 2 or more; sparse_features tells of one."
            )
        return found

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        pairs = itertools.pairwise(layers)
        return {
            **self.labels,
            "size": tuple(map(str, self._sizes(subject, layers))),
            "between": tuple(f"{one} and {other}" for one, other in pairs),
        }

    def _sizes(self, subject: Subject, layers: Sequence[int]) -> list[int]:
        """Of circuits: powers of two, and all nodes."""
        total = len(layers) * (self.multiple * subject.run.config.model.width + 1)
        return [*(2**i for i in range(total.bit_length()) if 2**i < total), total]

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        names = sites(layers, STREAM)
        started, steps, meant, chosen, judged, drawn = jax.random.split(key, 6)
        learned = self.dictionaries(subject, names, started, steps)[LEARNED]
        features = Nodes.of(subject, names, Features(self, learned), subject.batch(meant))
        neurons = Nodes.of(subject, names, Neurons(), subject.batch(meant))

        def effects(nodes: Nodes, key: Key[jax.Array, ""]) -> Float[jax.Array, "L n+1"]:
            return subject.averaged(subject.batch(key), lambda batch: nodes.effects(batch, self.steps))

        scores, sizes = effects(features, chosen), jnp.asarray(self._sizes(subject, layers))
        own, of_neurons = first(scores, sizes), first(effects(neurons, chosen), sizes)
        alive = jnp.pad(features.alive, ((0, 0), (0, 1)), constant_values=True)
        draws = jax.random.uniform(drawn, (DRAWS, *alive.shape)) + alive
        random = jax.lax.map(lambda draw: first(draw, sizes), draws)
        kept = jnp.stack([own, own.at[..., -1].set(False), *random, ~own])
        ends = jnp.broadcast_to(jnp.array([False, True])[:, None, None], (2, *alive.shape))
        circuits = jnp.concatenate([ends, kept.reshape(-1, *alive.shape)])
        top = jnp.argsort(-jnp.abs(scores[:, :-1]), axis=1)[:, :TOP]
        nodes = jnp.pad(top, ((0, 0), (0, 1)), constant_values=alive.shape[1] - 1)

        def judge(batch: Batch) -> dict[str, jax.Array]:
            edges, exact = features.edges(batch, nodes)
            return {
                "features": jax.lax.map(lambda keep: features.kept(batch, keep), circuits),
                "neurons": jax.lax.map(lambda keep: neurons.kept(batch, keep), of_neurons),
                "effect": jnp.take_along_axis(features.effects(batch, self.steps), nodes, axis=1),
                "without": features.without(batch, nodes),
                "edges": edges,
                "edges_exact": exact,
            }

        told = subject.averaged(subject.batch(judged), judge)
        (nothing, whole), left = told["features"][:2], told["features"][2:].reshape(kept.shape[:2])
        by_kind = [left[0], left[1], told["neurons"], jnp.mean(left[2:-1], axis=0), left[-1]]
        edges, exact = (told[name].reshape(len(names) - 1, -1) for name in ("edges", "edges_exact"))
        return {
            "faithfulness": shares(jnp.stack(by_kind), nothing, whole),
            "effect": told["effect"],
            "effect_exact": told["without"] - whole,
            "edges": told["edges"],
            "edges_exact": told["edges_exact"],
            "agreement": jax.vmap(agreement)(edges, exact),
        }


def first(scores: Float[jax.Array, "L n"], sizes: Int[jax.Array, "S"]) -> Bool[jax.Array, "S L n"]:
    """The nodes of all layers with the largest scores, of either sign, as many as each size says."""
    return places(jnp.abs(scores)) < sizes[:, None, None]
