"""What an edge is worth, exactly and by gradients: the change of the margin where it carries the corrupted prompt's."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.analysis.base import Subject
from positionbias.analysis.edges import Graph, Pair, Values
from positionbias.analysis.pairs import corrupted
from positionbias.arrays import Float
from positionbias.tasks.base import Batch

LEAST = 1e-5  # of the largest: what is smaller is rounding, and ranks as nothing


def exact(pair: Pair, batch: Batch, other: Values) -> Float[jax.Array, "S R"]:
    """m where each edge alone, in a run on `batch`, carries what it does in the `other` run; 0 where there is none."""
    places = np.argwhere(pair.graph.real)

    def one(place: jax.Array) -> jax.Array:
        share = jnp.zeros(pair.graph.real.shape).at[place[0], place[1]].set(1.0)
        return pair.patched(batch, other, share)

    found = jax.lax.map(one, jnp.asarray(places))
    return jnp.zeros(pair.graph.real.shape).at[places[:, 0], places[:, 1]].set(found)


def estimated(pair: Pair, clean: Values, other: Values, steps: int) -> Float[jax.Array, "S R"]:
    """The change of m that gradients foretell for each edge; 0 where there is none.

    (z'_u - z_u) . mean over k = 1..`steps` of dm / d(what v reads), with the embeddings z' + k / `steps` (z - z'):
    EAP-IG (Hanna et al. 2024, arXiv 2403.17806, eq. 3), and with one step, on z itself, EAP (Syed et al. 2023,
    arXiv 2310.10348). The authors' code of 2025 counts k from 0 to `steps` - 1, and so with one step is on z'.
    """
    graph, heads = pair.graph, pair.subject.run.config.model.heads

    def margin(nudges: Values, at: jax.Array) -> jax.Array:
        def send(number: int, value: jax.Array) -> jax.Array:
            return value if number else (other[0] + at * (clean[0] - other[0]))[0]

        told = graph.edits(send, lambda number, value: value + nudges[number])
        return pair.margin(pair.subject.apply(pair.clean, (), told)[0])

    rows, size = clean[0].shape[1:3], clean[0].shape[3]
    nothing = [jnp.zeros((*rows, *([heads] if block.heads else []), size)) for block in graph.readers]

    def step(total: Values, at: jax.Array) -> tuple[Values, None]:
        return jax.tree.map(jnp.add, total, jax.grad(margin)(nothing, at)), None

    slopes = jax.lax.scan(step, nothing, jnp.arange(1, steps + 1) / steps)[0]
    changes = jnp.concatenate([theirs - ours for ours, theirs in zip(clean, other, strict=True)])
    each = jnp.concatenate([x if x.ndim == 4 else x[:, :, None] for x in slopes], axis=2)
    return jnp.einsum("sbtd,btrd->sr", changes, each) / steps * graph.real


def of_items(
    subject: Subject, graph: Graph, batch: Batch, function: Callable[[Pair, Values, Values], dict[str, jax.Array]]
) -> dict[str, jax.Array]:
    """The mean over items of "clean" and "corrupted" m, and of what `function` makes of a pair and what both send."""

    def one(piece: Batch, inputs: jax.Array) -> dict[str, jax.Array]:
        pair = Pair.of(subject, graph, piece, inputs)
        (clean, ours), (other, theirs) = pair.sent(pair.clean), pair.sent(pair.corrupted)
        return function(pair, ours, theirs) | {"clean": clean, "corrupted": other}

    found: dict[str, jax.Array] = subject.averaged(batch, one, beside=corrupted(batch))
    return found


def shares(margins: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """How far from `start` to `end` margins have come; 0 where both are the same."""
    gap = end - start
    return jnp.where(gap == 0, 0.0, (margins - start) / jnp.where(gap == 0, 1.0, gap))


def agreement(first: Float[jax.Array, "E"], second: Float[jax.Array, "E"]) -> Float[jax.Array, ""]:
    """Spearman's rank correlation, equal numbers sharing their mean rank; 0 where one is all equal."""

    def centred(values: jax.Array) -> jax.Array:
        size = jnp.max(jnp.abs(values), initial=0.0)
        told = jnp.where(jnp.abs(values) < LEAST * size, 0.0, values)
        order = jnp.sort(told)
        ranks = jnp.searchsorted(order, told, side="left") + jnp.searchsorted(order, told, side="right")
        return ranks - jnp.mean(ranks.astype(jnp.float32))

    a, b = centred(first), centred(second)
    size = jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))
    return jnp.sum(a * b) / jnp.where(size == 0, 1.0, size)


def error(estimates: Float[jax.Array, "E"], values: Float[jax.Array, "E"]) -> Float[jax.Array, ""]:
    """Summed |estimate - value| by summed |value|: 1 for estimates of 0; 0 where all values are 0."""
    size = jnp.sum(jnp.abs(values))
    return jnp.where(size == 0, 0.0, jnp.sum(jnp.abs(estimates - values)) / jnp.where(size == 0, 1.0, size))
