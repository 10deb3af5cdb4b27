"""Method benchmark: how well every way to find a direction finds the same known cause."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from positionbias.analysis.alignment import (
    MOST,
    Taught,
    answers,
    descended,
    interchanged,
    margins,
    rotated,
    subspaces,
    unit,
)
from positionbias.analysis.base import STREAM, Axes, Labels, Subject, sites, stacked
from positionbias.analysis.variables import pairs
from positionbias.arrays import Float, Int, Key
from positionbias.spec import member, require
from positionbias.tasks.base import Batch

TAUGHT = ("means", "probe", "das")  # what learns from labels
METHODS = (*TAUGHT, "pca", "random", "whole")
TURNS = 50  # of power iteration


@member("analyses", "method_benchmark")
@dataclasses.dataclass(frozen=True)
class MethodBenchmark(Taught):
    """Log odds, in nats, that an interchange along the direction of each method moves, of one known cause.

    CausalGym (Arora et al. 2024, arXiv 2402.12560): a `variable` of two values ("evidence" or "condition", see
    `OfVariable`) whose cause is known by construction; each method finds one direction of the stream that separates or
    moves it; and the interchange along it in fresh pairs changes log p(answer with the other value) - log p(own answer)
    by "log_odds", by layer and method, the mean over the pairs where the two differ. Methods: the difference of "means"
    of `examples` pairs; the weights of a logistic "probe"; "das", one direction learned by `updates` steps of
    interchanges; "pca", the first principal component; a "random" direction; and the "whole" stream, all that these
    rows hold: where that is the key as well, as of "evidence", rows change places and no more.

    "shuffled" are those that learn from labels, taught shuffled ones: what a method makes of no cause, to be taken from
    the above.
    """

    variable: str = "evidence"
    examples: int = 256
    updates: int = 200
    batch: int = 32
    rate: float = 1e-2

    axes: ClassVar[Axes] = {"log_odds": ("layer", "method"), "shuffled": ("layer", "taught")}
    shown = "log_odds"
    labels: ClassVar[Labels] = {"method": METHODS, "taught": TAUGHT}
    draws = True
    allowed: ClassVar[tuple[str, ...]] = ("evidence", "condition")

    def __post_init__(self) -> None:
        require(1 <= self.examples <= MOST, "examples", self.examples, f"a whole number from 1 to {MOST}")
        super().__post_init__()

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        names = sites(layers, STREAM)
        shown, order, learned, drawn, asked, own = jax.random.split(key, 6)
        streams, value = self._seen(subject, names, shown)
        mixed = jax.random.permutation(order, value)
        das = subspaces(subject, names, self.variable, 1, self._training(), learned, (False, True))[
            :, :, 0
        ]  # [L, 2, D]
        random = jax.vmap(lambda key: rotated(key, 1, das.shape[-1])[0])(jax.random.split(drawn, len(names)))

        def of(streams: Float[jax.Array, "M D"]) -> list[jax.Array]:
            return [
                means(streams, value),
                probe(streams, value),
                component(streams),
                means(streams, mixed),
                probe(streams, mixed),
            ]

        mean, weights, first, mixed_mean, mixed_weights = jax.lax.map(of, streams)
        single = (mean, weights, das[:, 0], first, random)
        directions = jnp.stack([*single, mixed_mean, mixed_weights, das[:, 1]], axis=1)
        moved, whole = self._moved(subject, names, directions, asked, own)
        log_odds = jnp.concatenate([moved[:, : len(single)], whole[:, None]], axis=1)
        return {"log_odds": log_odds, "shuffled": moved[:, len(single) :]}

    def _seen(
        self, subject: Subject, names: list[str], key: Key[jax.Array, ""]
    ) -> tuple[Float[jax.Array, "L M D"], Int[jax.Array, "M"]]:
        """The streams of the rows where the variable stands, and its value there."""

        def one(batch: Batch, key: Key[jax.Array, ""]) -> tuple[jax.Array, jax.Array]:
            found = pairs(subject, names, self.variable, key, len(batch.query))
            each = jnp.arange(len(batch.query))[:, None]
            return stacked(subject, names, found.base)[:, each, found.rows], found.before

        drawn, own = jax.random.split(key)
        streams, value = subject.pieces(subject.batch(drawn, self.examples), one, own)  # [piece, L, B, n, D]
        return jnp.moveaxis(streams, 1, 0).reshape(len(names), -1, streams.shape[-1]), value.reshape(-1)

    def _moved(
        self,
        subject: Subject,
        names: list[str],
        directions: Float[jax.Array, "L m D"],
        items: Key[jax.Array, ""],
        key: Key[jax.Array, ""],
    ) -> tuple[Float[jax.Array, "L m"], Float[jax.Array, "L"]]:
        """The log odds that an interchange along each direction moves, and one of the whole stream."""
        size = directions.shape[-1]

        def one(batch: Batch, key: Key[jax.Array, ""]) -> tuple[jax.Array, jax.Array, jax.Array]:
            found = pairs(subject, names, self.variable, key, len(batch.query))
            before = margins(found, answers(subject, found, {}))

            def of(layer: jax.Array) -> tuple[jax.Array, jax.Array]:
                def along(basis: tuple[jax.Array, jax.Array]) -> jax.Array:
                    # 0 where both answers are one.
                    return jnp.mean(margins(found, interchanged(subject, names, found, layer, basis)) - before)

                each = (directions[layer][:, None], jnp.ones((directions.shape[1], 1)))
                return jax.lax.map(along, each), along((jnp.eye(size), jnp.ones(size)))

            differ = jnp.mean((found.told != found.was).astype(jnp.float32))
            return *jax.lax.map(of, jnp.arange(len(names))), differ

        moved, whole, share = subject.averaged(subject.batch(items), one, key)  # of the items only the number counts
        share = jnp.where(share == 0, 1.0, share)
        return moved / share, whole / share


def means(streams: Float[jax.Array, "M D"], value: Int[jax.Array, "M"]) -> Float[jax.Array, "D"]:
    """From the mean of those of value 0 to the mean of those of value 1."""
    one = value.astype(jnp.float32)
    weight = one / jnp.maximum(jnp.sum(one), 1) - (1 - one) / jnp.maximum(jnp.sum(1 - one), 1)
    return unit(jnp.matmul(weight, streams, precision="highest"))


def probe(streams: Float[jax.Array, "M D"], value: Int[jax.Array, "M"]) -> Float[jax.Array, "D"]:
    """The direction in which the log odds of value 1 rise fastest, by logistic regression of standardised features."""
    spread = jnp.std(streams, axis=0) + 1e-6
    x, label = (streams - jnp.mean(streams, axis=0)) / spread, value.astype(jnp.float32)

    def loss(weights: tuple[jax.Array, jax.Array], key: jax.Array, share: jax.Array) -> jax.Array:
        scores = x @ weights[0] + weights[1]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(scores, label)) + 1e-3 * jnp.sum(jnp.square(weights[0]))

    start = (jnp.zeros(x.shape[1]), jnp.zeros(()))
    weights, _ = descended(loss, start, optax.adam(0.05), jax.random.key(0), 100)
    return unit(weights / spread)


def component(streams: Float[jax.Array, "M D"]) -> Float[jax.Array, "D"]:
    """The first principal component, by power iteration."""
    x = streams - jnp.mean(streams, axis=0)

    def turn(direction: jax.Array, _: None) -> tuple[jax.Array, None]:
        return unit(jnp.matmul(x.T, jnp.matmul(x, direction, precision="highest"), precision="highest")), None

    return jax.lax.scan(turn, unit(x[0]), None, TURNS)[0]
