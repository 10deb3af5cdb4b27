"""Who answers in-context classification: the ideal observer, and simple rules."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Int
from positionbias.tasks.base import one_of

EXACT = 1e-6  # stands for the variance of items that have none


class Sight(NamedTuple):
    """A sequence of labelled items and a query, and what the answering row sees of it."""

    item: Float[jax.Array, "n+1 d"]  # the query last, in units in which a feature of a class's mean has variance 1
    label: Int[jax.Array, "n"]
    right: Int[jax.Array, ""]  # label that is asked for
    sees_item: Bool[jax.Array, "n"]
    sees_label: Bool[jax.Array, "n"]
    sees_query: Bool[jax.Array, ""]


def best_guess(
    sight: Sight,
    before: Float[jax.Array, "n"],
    rivals: Bool[jax.Array, "n"],
    slot: Int[jax.Array, ""],
    novel: Bool[jax.Array, ""],
    labels: int,
    burstiness: int,
    variance: float,
) -> Float[jax.Array, ""]:
    """Probability of the likeliest label, to one who is told which items share a class and which two are `rivals`.

    `before` is how likely the answer is the label of item i before any item is seen, `slot` the item whose label it is,
    `variance` that of the noise of an item, and of `labels` the context has some, `burstiness` items a class. Classes
    that are not `novel` are known: an item gives its label away.
    """
    same = sight.label[:, None] == sight.label  # of one class, unless two classes share a label
    mixed = jnp.max(jnp.sum(same, axis=-1)) > burstiness
    # Of two rivals one is overwritten, nobody knows which: they count as one more item of the class that is asked for.
    found = ((sight.item[slot], jnp.any(rivals & sight.sees_item)), (sight.item[-1], novel & sight.sees_query))
    alike = same & sight.sees_item & ~rivals
    weight = jax.nn.softmax(jnp.log(before) + _log_density(found, sight.item[:-1], alike, max(variance, EXACT)))

    told = jnp.any(same & (sight.sees_label | (sight.sees_item & ~novel)), axis=-1)
    unknown = jnp.maximum(labels - jnp.sum(told / jnp.sum(same, axis=-1)), 1)
    hidden = jnp.sum(jnp.where(told, 0.0, weight))
    best = jnp.maximum(jnp.max(jnp.where(told, same @ weight, 0.0)), hidden / unknown)
    bound = jnp.where(~novel | told[slot], 1.0, 1 / unknown)
    return jnp.where(sight.sees_query & (~novel | mixed), bound, best)


def _log_density(
    found: tuple[tuple[Float[jax.Array, "d"], Bool[jax.Array, ""]], ...],
    item: Float[jax.Array, "n d"],
    alike: Bool[jax.Array, "n n"],
    variance: float,
) -> Float[jax.Array, "n"]:
    """Log-density of the vectors `found`, each as far as it is seen, were they of one novel class with `alike[i]`.

    An item is its class's mean, a standard Gaussian, plus one of that variance.
    """
    total, count = alike.astype(jnp.float32) @ item, jnp.sum(alike, axis=-1, keepdims=True)
    log_density = jnp.zeros(len(item))
    for vector, seen in found:
        expected, spread = total / (count + variance), variance + variance / (count + variance)
        errors = jnp.square(vector - expected) / spread + jnp.log(spread)
        log_density -= jnp.where(seen, 0.5 * jnp.sum(errors, axis=-1), 0.0)
        total, count = total + seen * vector, count + seen
    return log_density


def rules(sight: Sight, labels: int) -> dict[str, Float[jax.Array, ""]]:
    """The probability that each simple rule is right, of those that `InContextClassification.baselines` names."""
    chance = jnp.full((), 1 / labels)
    right = sight.label == sight.right

    def among(chosen: Bool[jax.Array, "n"]) -> Float[jax.Array, ""]:
        """The probability that one of the `chosen` items at random has the right label."""
        return one_of(chosen, right, chance)

    count = jnp.sum((sight.label[:, None] == sight.label) & sight.sees_label, axis=-1) * sight.sees_label
    majority = among(sight.sees_label & (count == jnp.max(count)))
    slot = jnp.arange(len(right))
    last = jnp.max(jnp.where(sight.sees_label, slot, -1))
    both = sight.sees_item & sight.sees_label
    apart = jnp.where(both, jnp.sum(jnp.square(sight.item[:-1] - sight.item[-1]), axis=-1), jnp.inf)
    return {
        "chance": chance,
        "majority": majority,
        "context_label": among(sight.sees_label),
        "nearest": among(slot == last),
        "nearest_vector": among(sight.sees_query & both & (apart == jnp.min(apart))),
    }
