"""What analyses of sparse features share: learning dictionaries of the stream, and the log-odds of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from positionbias.analysis.alignment import MOST, descended, unit
from positionbias.analysis.base import STREAM, Analysis, Subject, stacked
from positionbias.analysis.variables import width
from positionbias.arrays import Float, Key, Tree
from positionbias.models import edits
from positionbias.spec import ConfigError, require
from positionbias.tasks.base import Batch

TOP = 8  # features of a layer whose effects are told
LEARNED, RANDOM = "learned", "random"  # dictionaries, the second the control of the first


class OfDictionaries(Analysis):
    """An analysis by sparse autoencoders of the stream behind every layer, as `sparse_features` defines them."""

    multiple: int
    active: int
    updates: int
    batch: int
    rate: float

    alike = (STREAM,)
    any_rows = True

    def __post_init__(self) -> None:
        for name in ("multiple", "active", "updates", "batch"):
            require(1 <= getattr(self, name) <= MOST, name, getattr(self, name), f"a whole number from 1 to {MOST}")
        require(0 < self.rate <= 1, "rate", self.rate, "a number above 0, up to 1")

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def check(self, subject: Subject) -> None:
        subject.require_tokens("a task whose answers are tokens, as these have odds", said=True)
        size = self.multiple * subject.run.config.model.width
        if size < max(2 * TOP, self.active):
            raise ConfigError(
                f"--analyses: multiple = {self.multiple} makes {size} features of model.width ="
                f" {subject.run.config.model.width}; allowed: {max(2 * TOP, self.active)} features or more."
            )

    def dictionaries(
        self,
        subject: Subject,
        names: Sequence[str],
        started: Key[jax.Array, ""],
        steps: Key[jax.Array, ""],
        kinds: Sequence[str] = (LEARNED,),
    ) -> dict[str, Tree]:
        """Those of all these streams, each with a leading L: `LEARNED`, and `RANDOM`, whose W_d stays as drawn."""
        size = width(subject, names[0])
        drawn, first = jax.random.split(started)
        decoder = unit(jax.random.normal(drawn, (len(names), self.multiple * size, size)))
        x = stacked(subject, names, subject.batch(first, self.batch))
        center = jnp.mean(x, axis=(1, 2))
        scale = jnp.sqrt(jnp.mean(jnp.square(x - center[:, None, None]), axis=(1, 2, 3))) + 1e-6
        fixed = {"center": center, "scale": scale}
        rest = {"encoder": jnp.swapaxes(decoder, 1, 2), "threshold": jnp.zeros(decoder.shape[:2]), "offset": 0 * center}
        both = {LEARNED: {**rest, "decoder": decoder}, RANDOM: rest}
        start = {kind: both[kind] for kind in kinds}

        def whole(parameters: Tree) -> dict[str, Tree]:
            return {kind: {"decoder": decoder, **parameters[kind], **fixed} for kind in kinds}

        def loss(parameters: Tree, key: jax.Array, _: jax.Array) -> jax.Array:
            x = stacked(subject, names, subject.batch(key, self.batch))
            total = jnp.zeros(())
            for dictionary in whole(parameters).values():
                made = jax.vmap(self.rebuilt)(dictionary, x)
                total += jnp.sum(jnp.mean(jnp.square(x - made), axis=(1, 2, 3)) / jnp.square(scale))
            return total

        def mended(parameters: Tree) -> Tree:
            return parameters | {LEARNED: parameters[LEARNED] | {"decoder": unit(parameters[LEARNED]["decoder"])}}

        return whole(descended(loss, start, optax.adam(self.rate), steps, self.updates, mended))

    def features(self, dictionary: Tree, x: Float[jax.Array, "... D"]) -> Float[jax.Array, "... F"]:
        """f of one layer's stream."""
        scaled = (x - dictionary["center"]) / dictionary["scale"] - dictionary["offset"]
        found = jax.nn.relu(scaled @ dictionary["encoder"] + dictionary["threshold"])
        held = jax.lax.stop_gradient(found)

        def next_largest(_: int, last: jax.Array) -> jax.Array:
            return jnp.max(jnp.where(held < last, held, 0.0), axis=-1, keepdims=True)

        # One maximum after another, as sorting takes ten times as long on CPUs.
        least = jax.lax.fori_loop(0, self.active, next_largest, jnp.full((*found.shape[:-1], 1), jnp.inf))
        return jnp.where(found >= least, found, 0.0)

    def rebuilt(self, dictionary: Tree, x: Float[jax.Array, "... D"]) -> Float[jax.Array, "... D"]:
        """What the features of a stream make of it."""
        return of_features(dictionary, self.features(dictionary, x))


def of_features(dictionary: Tree, features: Float[jax.Array, "... F"]) -> Float[jax.Array, "... D"]:
    """The stream that these features are."""
    return dictionary["center"] + dictionary["scale"] * (features @ dictionary["decoder"] + dictionary["offset"])


def answered(subject: Subject, batch: Batch, edit: Any) -> tuple[Float[jax.Array, "B A"], Float[jax.Array, "B A"]]:
    """Of every answer the log-probability of the right one, and its log-odds, in nats."""
    outputs, _ = subject.apply(batch, (), edit)
    each = jnp.arange(len(outputs))[:, None]
    said, right = outputs[each, subject.run.answer_rows(batch)], batch.targets[each, batch.query]
    is_right = right[..., None] == jnp.arange(said.shape[-1])
    others = jax.nn.logsumexp(jnp.where(is_right, -jnp.inf, said), axis=-1)
    odds = jnp.take_along_axis(said, right[..., None], axis=-1)[..., 0] - others
    return subject.answers(outputs, batch)["log_probability"], odds


def slopes(
    subject: Subject, names: Sequence[str], batch: Batch, streams: Float[jax.Array, "L B T D"]
) -> Float[jax.Array, "L B T D"]:
    """Of every item's log-odds, the mean over its answers, along each of these streams."""

    def odds(shift: Float[jax.Array, "L B T D"]) -> jax.Array:
        edit = {name: edits.add(shift[i]) for i, name in enumerate(names)}
        return jnp.sum(jnp.mean(answered(subject, batch, edit)[1], axis=1))

    return jax.grad(odds)(jnp.zeros_like(streams))
