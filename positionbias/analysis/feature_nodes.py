"""Streams as nodes that can be taken away: features of a dictionary and its error, or coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Subject, stacked
from positionbias.analysis.dictionaries import OfDictionaries, answered, of_features, slopes
from positionbias.arrays import Bool, Float, Int, Tree
from positionbias.models import edits
from positionbias.tasks.base import Batch


class Parts(NamedTuple):
    """What a stream is the sum of: n nodes, and the error, another node, which is all that they leave out."""

    nodes: Float[jax.Array, "... n"]
    error: Float[jax.Array, "... D"]


class Coder(Protocol):
    """How the stream of each layer splits; `layer` is its place among those of an analysis, and may be traced."""

    def split(self, layer: Any, x: Float[jax.Array, "... D"]) -> Parts: ...

    def join(self, layer: Any, parts: Parts) -> Float[jax.Array, "... D"]: ...


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the dictionaries [L, ...] that an analysis has learned."""

    analysis: OfDictionaries
    dictionaries: Tree

    def split(self, layer: Any, x: Float[jax.Array, "... D"]) -> Parts:
        one = jax.tree.map(lambda leaf: leaf[layer], self.dictionaries)
        found = self.analysis.features(one, x)
        return Parts(found, x - of_features(one, found))

    def join(self, layer: Any, parts: Parts) -> Float[jax.Array, "... D"]:
        one = jax.tree.map(lambda leaf: leaf[layer], self.dictionaries)
        return of_features(one, parts.nodes) + parts.error


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Coordinates of the stream, which leave out nothing."""

    def split(self, layer: Any, x: Float[jax.Array, "... D"]) -> Parts:
        return Parts(x, jnp.zeros_like(x))

    def join(self, layer: Any, parts: Parts) -> Float[jax.Array, "... D"]:
        return parts.nodes + parts.error


@dataclasses.dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of all layers of a model: what is left of m, in nats, without some of them.

    A node is taken away by `mean`, row by row what it is on average. m is the log-odds of right answers.
    """

    subject: Subject
    names: Sequence[str]  # of the sites
    coder: Coder
    mean: Parts  # [L, T, ...]
    alive: Bool[jax.Array, "L n"]  # nodes that are not always 0

    @classmethod
    def of(cls, subject: Subject, names: Sequence[str], coder: Coder, batch: Batch) -> Nodes:
        """With means over a batch."""

        def one(piece: Batch) -> tuple[Parts, jax.Array]:
            parts = jax.vmap(coder.split)(jnp.arange(len(names)), stacked(subject, names, piece))
            return jax.tree.map(lambda x: jnp.mean(x, axis=1), parts), jnp.mean(parts.nodes != 0, axis=(1, 2))

        mean, alive = subject.averaged(batch, one)
        return cls(subject, names, coder, mean, alive > 0)

    def kept(self, batch: Batch, keep: Bool[jax.Array, "L n+1"]) -> Float[jax.Array, ""]:
        """m of runs in which nodes that are not kept are taken away, the error being the last of each layer."""

        def circuit(layer: int) -> edits.Edit:
            def change(was: jax.Array) -> jax.Array:
                return self.coder.join(layer, self._where(layer, keep[layer], self.coder.split(layer, _full(was))))

            return edits.Edit(change)

        return self._said(batch, {name: circuit(i) for i, name in enumerate(self.names)})

    def effects(self, batch: Batch, steps: int) -> Float[jax.Array, "L n+1"]:
        """The change of m by taking away each node, from gradients at the middles of `steps` parts of the way.

        The way is that of all nodes of a layer at once: the effects of a layer add up to what m changes by at its end.
        """
        x = stacked(self.subject, self.names, batch)

        def of(layer: jax.Array) -> jax.Array:
            now = self.coder.split(layer, x[layer])
            gap = self._gap(layer, now)

            def said(parts: Parts) -> jax.Array:
                return self._said(batch, self._at(layer, self.coder.join(layer, parts) - x[layer])) * len(x[layer])

            def at_share(share: jax.Array) -> Parts:
                return jax.grad(said)(jax.tree.map(lambda u, d: u + share * d, now, gap))

            found = jax.lax.map(at_share, (jnp.arange(steps) + 0.5) / steps)
            return _summed(gap, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), found))

        return jax.lax.map(of, jnp.arange(len(self.names)))

    def without(self, batch: Batch, nodes: Int[jax.Array, "L k"]) -> Float[jax.Array, "L k"]:
        """m without each of these nodes of each layer, alone."""
        x = stacked(self.subject, self.names, batch)

        def one(told: tuple[jax.Array, jax.Array]) -> jax.Array:
            layer, node = told
            return self._said(batch, self._at(layer, self._removal(layer, node, x[layer])))

        layer = jnp.broadcast_to(jnp.arange(len(nodes))[:, None], nodes.shape)
        return jax.lax.map(one, (layer.reshape(-1), nodes.reshape(-1))).reshape(nodes.shape)

    def edges(
        self, batch: Batch, nodes: Int[jax.Array, "L k"]
    ) -> tuple[Float[jax.Array, "L-1 k k"], Float[jax.Array, "L-1 k k"]]:
        """What nodes of a layer, the second axis, pass on to m of taking away each of the one before, the third.

        To first order, and as it is: m's slope along the later node, times what this is without the earlier one, less
        what it is.
        """
        x = stacked(self.subject, self.names, batch)
        of_streams = slopes(self.subject, self.names, batch, x)

        def between(lower: jax.Array) -> tuple[jax.Array, jax.Array]:
            upper = lower + 1
            later = self._slopes(upper, x[upper], of_streams[upper])

            def passed(shift: jax.Array) -> jax.Array:
                value = stacked(self.subject, self.names, batch, self._at(lower, shift))[upper]
                return _summed(self.coder.split(upper, value), later)[nodes[upper]]

            gap = self._gap(lower, self.coder.split(lower, x[lower]))
            back = jax.jacrev(passed)(jnp.zeros_like(x[lower])) * len(gap.nodes)
            foretold = jax.lax.map(lambda one: _summed(gap, self._slopes(lower, x[lower], one))[nodes[lower]], back)
            exact = jax.lax.map(lambda node: passed(self._removal(lower, node, x[lower])), nodes[lower])
            return foretold, exact.T - passed(jnp.zeros_like(x[lower]))[:, None]

        return jax.lax.map(between, jnp.arange(len(self.names) - 1))

    def _said(self, batch: Batch, edit: Any) -> Float[jax.Array, ""]:
        return jnp.mean(answered(self.subject, batch, edit)[1])

    def _at(self, layer: jax.Array, change: Float[jax.Array, "B T D"]) -> dict[str, edits.Edit]:
        return {name: edits.add(jnp.where(layer == i, change, 0.0)) for i, name in enumerate(self.names)}

    def _gap(self, layer: Any, now: Parts) -> Parts:
        """What taking away does to each node."""
        return jax.tree.map(lambda mean, u: mean[layer] - u, self.mean, now)

    def _where(self, layer: Any, keep: Bool[jax.Array, "n+1"], now: Parts) -> Parts:
        """The parts `now` but for nodes that are not kept."""
        kept = Parts(keep[:-1], keep[-1])
        return jax.tree.map(lambda keep, mean, u: jnp.where(keep, u, mean[layer]), kept, self.mean, now)

    def _removal(self, layer: jax.Array, node: jax.Array, x: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T D"]:
        """What taking away one node does to the stream of its layer."""
        now = self.coder.split(layer, x)
        keep = jnp.arange(now.nodes.shape[-1] + 1) != node
        return self.coder.join(layer, self._where(layer, keep, now)) - x

    def _slopes(self, layer: Any, x: Float[jax.Array, "B T D"], of_stream: Float[jax.Array, "B T D"]) -> Parts:
        """Of the nodes, where those of the stream they are joined to are told."""
        return jax.vjp(lambda parts: self.coder.join(layer, parts), self.coder.split(layer, x))[1](of_stream)[0]


def _full(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _summed(one: Parts, other: Parts) -> Float[jax.Array, "n+1"]:
    """Products [B, T, ...] added over rows, and over coordinates of the error; their mean over items."""
    nodes, error = jax.tree.map(jnp.multiply, one, other)
    both = jnp.concatenate([jnp.sum(nodes, axis=1), jnp.sum(error, axis=(1, 2))[:, None]], axis=1)
    return jnp.mean(both, axis=0)
