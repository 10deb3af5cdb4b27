"""What analyses of circuits share: cutting one out of a model by scores of edges, and asking what is left of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Subject
from positionbias.analysis.edge_scores import estimated, exact, of_items, shares
from positionbias.analysis.edges import Graph, OfEdges, Pair, Values
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.spec import require
from positionbias.tasks.base import Batch

SCORES = ("eap", "eap_ig", "exact")
RULES = ("greedy", "threshold")
DRAWS = 8  # of random circuits
MOST = 1000


@dataclasses.dataclass(frozen=True)
class Cut(OfEdges):
    """How circuits are cut: scores of edges, the rule by them, and sizes as shares of all edges."""

    scores: Literal["eap", "eap_ig", "exact"] = "eap_ig"
    steps: int = 5
    rule: Literal["greedy", "threshold"] = "greedy"
    sizes: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.7)

    def __post_init__(self) -> None:
        require(self.scores in SCORES, "scores", self.scores, f"one of {', '.join(SCORES)}")
        require(1 <= self.steps <= MOST, "steps", self.steps, f"a whole number from 1 to {MOST}")
        require(self.rule in RULES, "rule", self.rule, f"one of {', '.join(RULES)}")
        fits = bool(self.sizes) and all(0 < size < 1 for size in self.sizes)
        fits &= list(self.sizes) == sorted(set(self.sizes)) and len(set(self.size_names)) == len(self.sizes)
        require(fits, "sizes", self.sizes, "shares of the edges between 0 and 1, such as (0.1, 0.5), that grow")

    @property
    def size_names(self) -> tuple[str, ...]:
        """Labels of the axis "size"."""
        return tuple(f"{size:g}" for size in self.sizes)

    def circuits(self, parts: Graph, scores: Float[jax.Array, "S R"]) -> Bool[jax.Array, "sizes S R"]:
        """Those of all sizes, each within the next: the edges that come first."""
        order = greedy(parts, scores) if self.rule == "greedy" else by_size(parts, scores)
        counts = jnp.asarray([max(1, round(size * int(parts.real.sum()))) for size in self.sizes])
        return (order < counts[:, None, None]) & parts.real

    def scored(self, subject: Subject, parts: Graph, batch: Batch) -> Float[jax.Array, "S R"]:
        """The change of m by each edge, from these items."""

        def one(pair: Pair, clean: Values, other: Values) -> dict[str, jax.Array]:
            if self.scores == "exact":
                return {"scores": exact(pair, pair.clean, other)}
            return {"scores": estimated(pair, clean, other, 1 if self.scores == "eap" else self.steps)}

        found = of_items(subject, parts, batch, one)
        return jnp.where(parts.real, found["scores"] - (found["clean"] if self.scores == "exact" else 0.0), 0.0)

    def at_random(self, parts: Graph, key: Key[jax.Array, ""]) -> Bool[jax.Array, "draws sizes S R"]:
        """Circuits of random scores, cut by the same rule."""
        drawn = jax.random.normal(key, (DRAWS, *parts.real.shape))
        return jax.lax.map(lambda scores: self.circuits(parts, scores), drawn)


def by_size(parts: Graph, scores: Float[jax.Array, "S R"]) -> Int[jax.Array, "S R"]:
    """The place of each edge, the largest score of either sign first; those that are none come last."""
    return places(jnp.where(parts.real, jnp.abs(scores), -jnp.inf))


def places(sizes: Float[jax.Array, "..."]) -> Int[jax.Array, "..."]:
    """The place of each number among all, the largest first, and of equal ones the first."""
    order = jnp.argsort(-sizes.reshape(-1), stable=True)
    return jnp.zeros(sizes.size, jnp.int32).at[order].set(jnp.arange(sizes.size)).reshape(sizes.shape)


def greedy(parts: Graph, scores: Float[jax.Array, "S R"]) -> Int[jax.Array, "S R"]:
    """The place of each edge, from the output backwards (Hanna et al. 2024, arXiv 2403.17806).

    Next comes the largest score, of either sign, of all edges to the output or to what a sender of an edge before is
    made of: all edges lead to the output.
    """
    senders, ends = parts.real.shape[0], jnp.asarray(~parts.feeds.any(axis=1))

    def step(state: tuple[jax.Array, jax.Array], place: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        order, reached = state
        open_ = ends | jnp.any(parts.feeds & reached, axis=1)
        value = jnp.where(parts.real & open_ & (order == scores.size), jnp.abs(scores), -1.0)
        best = jnp.argmax(value)
        taken = order.reshape(-1).at[best].set(place).reshape(order.shape)
        return (taken, reached.at[best // scores.shape[1]].set(True)), None

    start = jnp.full(scores.shape, scores.size), jnp.zeros(senders, bool)
    return jax.lax.scan(step, start, jnp.arange(int(parts.real.sum())))[0][0]


def live(parts: Graph, circuit: Bool[jax.Array, "S R"]) -> Bool[jax.Array, "S R"]:
    """The edges on a way from the input to the output; others dangle, and a run is the same without them."""
    feeds, ends = jnp.asarray(parts.feeds, jnp.float32), ~parts.feeds.any(axis=1)
    edges = circuit.astype(jnp.float32)
    told = useful = jnp.arange(parts.real.shape[0]) == 0
    for _ in range(len(parts.senders)):  # no way is longer
        told = told | ((told @ edges) @ feeds > 0)
        useful = (edges @ (ends | (feeds @ useful > 0))) > 0
    return circuit & told[:, None] & (ends | (feeds @ useful > 0))


def used(parts: Graph, circuit: Bool[jax.Array, "S R"]) -> Bool[jax.Array, "S"]:
    """The heads and MLPs on a way from the input to the output: senders but for the input."""
    return jnp.any(live(parts, circuit), axis=1)[1:]


def faithfulness(
    subject: Subject, parts: Graph, batch: Batch, circuits: Bool[jax.Array, "n S R"]
) -> Float[jax.Array, "n"]:
    """(m - m corrupted) / (m clean - m corrupted), m of runs in which all edges but a circuit's are corrupted."""
    rest = parts.real & ~circuits

    def one(pair: Pair, clean: Values, other: Values) -> dict[str, jax.Array]:
        return {"m": jax.lax.map(lambda share: pair.patched(pair.clean, other, share.astype(jnp.float32)), rest)}

    found = of_items(subject, parts, batch, one)
    return shares(found["m"], found["corrupted"], found["clean"])


def hypergeometric(total: int, first: jax.Array, second: jax.Array) -> Float[jax.Array, "total+1"]:
    """The chance of each number of common members of two random sets of these sizes among `total`."""
    x, first, second = jnp.arange(total + 1.0), first.astype(jnp.float32), second.astype(jnp.float32)
    low, high = jnp.maximum(first + second - total, 0), jnp.minimum(first, second)
    # Each by the one before: differences of large factorials would not be told apart in float32.
    up = (first - x) * (second - x) / ((x + 1) * jnp.maximum(total - first - second + x + 1, 1))
    steps = jnp.where((x >= low) & (x < high), jnp.log(jnp.where(up > 0, up, 1.0)), 0.0)
    logits = jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)[:-1]])
    return jax.nn.softmax(jnp.where((x >= low) & (x <= high), logits, -jnp.inf))


def overlap(first: Bool[jax.Array, "M"], second: Bool[jax.Array, "M"]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Common members by those of either, 0 of none; its mean over random sets as large; their chance of as many."""
    sizes, both = (jnp.sum(first), jnp.sum(second)), jnp.sum(first & second)
    chances, x = hypergeometric(first.size, *sizes), jnp.arange(first.size + 1)

    def index(common: jax.Array) -> jax.Array:
        return common / jnp.maximum(sizes[0] + sizes[1] - common, 1)

    return index(both), jnp.sum(chances * index(x)), jnp.sum(jnp.where(x >= both, chances, 0.0))
