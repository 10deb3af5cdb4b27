"""Sparse features: a sparse autoencoder of the stream, and which of its features answers come from."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Axes, Labels, Subject, sites, stacked
from positionbias.analysis.dictionaries import LEARNED, RANDOM, TOP, OfDictionaries, answered, slopes
from positionbias.arrays import Float, Int, Key, Tree
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch

KINDS = (LEARNED, RANDOM)


@member("analyses", "sparse_features")
@dataclasses.dataclass(frozen=True)
class SparseFeatures(OfDictionaries):
    """A sparse autoencoder of the stream behind every layer, and the features whose removal changes answers most.

    Gao et al. 2024 (arXiv 2406.04093): of x, centred and at unit mean square, f is relu(W_e (x - b) + b_e) where it is
    among the `active` largest, else 0, and f W_d + b is x again; W_d has `multiple` times the width unit rows, and
    trains for `updates` steps of Adam at `rate` on all rows of `batch` fresh items. "explained" is the share of x's
    variance in other items, "active" the mean number of features above 0, "dead" the share of features that never are,
    and "recovered" (ablated - spliced) / (ablated - clean) of the loss of answers: with the reconstruction in place of
    the stream in all rows ("spliced"), with the stream's mean ("ablated"), and as it is ("clean"), in nats; 0 where the
    mean does no harm, and noise where it does little, as before training. "explained_random" and "recovered_random" are
    those of a dictionary W_d that stays at random while the rest is trained.

    Features as a circuit, after Marks et al. 2024 (arXiv 2403.19647): what setting a feature to 0 in all rows does to
    m = log p - log (1 - p), p being the probability of the right answer, is to first order "attribution" =
    -sum f dm / df, the error of the reconstruction staying in the stream. (log p itself has no slope in a model that is
    sure.) The features of the 8 largest are chosen, in absolute value; "attribution" and "ablation", the change of m
    when they are indeed set to 0, one at a time, are of other items. "ablation_others" is that of as many others that
    are not dead.
    """

    multiple: int = 4
    active: int = 8
    updates: int = 300
    batch: int = 32
    rate: float = 3e-3

    axes: ClassVar[Axes] = {
        **dict.fromkeys(
            ("explained", "explained_random", "active", "dead", "recovered", "recovered_random"), ("layer",)
        ),
        **dict.fromkeys(("spliced", "ablated"), ("layer",)),
        "clean": (),
        **dict.fromkeys(("attribution", "ablation", "ablation_others"), ("layer", "rank")),
    }
    shown = "explained"
    labels: ClassVar[Labels] = {"rank": tuple(str(1 + rank) for rank in range(TOP))}

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        names = sites(layers, STREAM)
        started, steps, chosen, judged, others = jax.random.split(key, 5)
        several = self.dictionaries(subject, names, started, steps, KINDS)
        learned = several[LEARNED]

        def first_effects(key: Key[jax.Array, ""]) -> tuple[jax.Array, jax.Array]:
            return subject.averaged(
                subject.batch(key), lambda batch: self._attributions(subject, names, learned, batch)
            )

        attribution, alive = first_effects(chosen)
        top = jnp.argsort(-jnp.abs(attribution), axis=1)[:, :TOP]
        layer = jnp.arange(len(names))[:, None]
        taken = jnp.zeros(attribution.shape, bool).at[layer, top].set(True)
        draw = jax.random.uniform(others, attribution.shape) + (alive > 0)
        rest = jax.lax.top_k(jnp.where(taken, -1.0, draw), TOP)[1]
        told = subject.averaged(
            subject.batch(judged), lambda batch: self._judged(subject, names, several, jnp.stack([top, rest]), batch)
        )
        (ablation, ablation_others), clean = told["changes"], told["clean"]
        # The gap is that of losses; where the mean does no harm there is nothing to recover.
        gap = told["ablated"] - clean
        there = jnp.abs(gap) > 1e-6
        found = {}
        for kind, ending in zip(KINDS, ("", "_random"), strict=True):
            found[f"recovered{ending}"] = jnp.where(
                there, (told["ablated"] - told[kind]) / jnp.where(there, gap, 1.0), 0.0
            )
            found[f"explained{ending}"] = 1 - told[f"error_{kind}"] / jnp.maximum(told["spread"], 1e-12)
        return found | {
            "spliced": told[LEARNED],
            "ablated": told["ablated"],
            "clean": clean,
            "active": jnp.sum(told["alive"], axis=1),
            "dead": jnp.mean(told["alive"] == 0, axis=1),
            "attribution": jnp.take_along_axis(first_effects(judged)[0], top, axis=1),
            "ablation": ablation,
            "ablation_others": ablation_others,
        }

    def _attributions(
        self, subject: Subject, names: list[str], dictionary: Tree, batch: Batch
    ) -> tuple[Float[jax.Array, "L F"], Float[jax.Array, "L F"]]:
        """What setting each feature to 0 does to the log-odds of answers, to first order; how often it is on."""
        x = stacked(subject, names, batch)
        features = jax.vmap(self.features)(dictionary, x)
        of_streams = slopes(subject, names, batch, x)
        along = (
            jnp.einsum("lbtd,lfd->lbtf", of_streams, dictionary["decoder"]) * dictionary["scale"][:, None, None, None]
        )
        return -jnp.mean(jnp.sum(features * along, axis=2), axis=1), jnp.mean(features > 0, axis=(1, 2))

    def _judged(
        self,
        subject: Subject,
        names: list[str],
        several: dict[str, Tree],
        features: Int[jax.Array, "2 L k"],
        batch: Batch,
    ) -> dict[str, Any]:
        """Losses of answers and squared errors by layer, and what the log-odds are without each of these features."""
        x, index = stacked(subject, names, batch), jnp.arange(len(names))
        learned = several[LEARNED]

        def spliced(layer: jax.Array, value: Float[jax.Array, "B T D"]) -> tuple[jax.Array, jax.Array]:
            """Means of the log-probability and the log-odds."""
            edit = {name: edits.add(jnp.where(layer == i, value - x[layer], 0.0)) for i, name in enumerate(names)}
            return jax.tree.map(jnp.mean, answered(subject, batch, edit))

        def without(told: tuple[jax.Array, jax.Array]) -> jax.Array:
            layer, feature = told
            one = jax.tree.map(lambda leaf: leaf[layer], learned)
            part = self.features(one, x[layer])[..., feature, None] * one["decoder"][feature] * one["scale"]
            return spliced(layer, x[layer] - part)[1]

        def losses(value: Float[jax.Array, "L B T D"]) -> Float[jax.Array, "L"]:
            return jax.lax.map(lambda i: -spliced(i, value[i])[0], index)

        layer = jnp.broadcast_to(index[:, None], features.shape)
        log_probability, odds = jax.tree.map(jnp.mean, answered(subject, batch, {}))
        found = {
            "clean": -log_probability,
            "ablated": losses(jnp.broadcast_to(learned["center"][:, None, None], x.shape)),
            "spread": jnp.mean(jnp.square(x - learned["center"][:, None, None]), axis=(1, 2, 3)),
            "alive": jnp.mean(jax.vmap(self.features)(learned, x) > 0, axis=(1, 2)),
            "changes": jax.lax.map(without, (layer.reshape(-1), features.reshape(-1))).reshape(features.shape) - odds,
        }
        for kind, dictionary in several.items():
            made = jax.vmap(self.rebuilt)(dictionary, x)
            found[kind] = losses(made)
            found[f"error_{kind}"] = jnp.mean(jnp.square(x - made), axis=(1, 2, 3))
        return found
