"""What searches for directions share: learning a basis on the frozen model, and how it does in fresh pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from positionbias.analysis.base import Subject, at_layer, last_outputs
from positionbias.analysis.variables import OfVariable, Pairs, pairs, width
from positionbias.arrays import Float, Key, Tree
from positionbias.models import edits
from positionbias.spec import require

MOST = 100_000
STEP = 0.5  # the largest change of a basis at once: its singular values stay where `polar` converges
Basis = tuple[jax.Array, jax.Array]  # directions [..., n, D] and of each the share that is interchanged [..., n]


@dataclasses.dataclass(frozen=True)
class Training:
    """How a basis is learned: Adam at a learning rate that falls to 0 evenly, fresh pairs at every step."""

    updates: int
    batch: int
    rate: float

    def __post_init__(self) -> None:
        for name in ("updates", "batch"):
            require(1 <= getattr(self, name) <= MOST, name, getattr(self, name), f"a whole number from 1 to {MOST}")
        require(0 < self.rate <= 1, "rate", self.rate, "a number above 0, up to 1")

    @property
    def rule(self) -> optax.GradientTransformation:
        """For a basis that `polar` mends after every step, and whose steps are therefore clipped."""
        falling = optax.linear_schedule(self.rate, 0.0, self.updates)
        return optax.chain(optax.adam(falling), optax.clip_by_global_norm(STEP))


class Taught(OfVariable):
    """What analyses share that learn directions of a variable: by `updates` steps of a `batch` each, at a `rate`."""

    updates: int
    batch: int
    rate: float

    def __post_init__(self) -> None:
        self._training()

    def _training(self) -> Training:
        return Training(self.updates, self.batch, self.rate)


def polar(matrix: Float[jax.Array, "n D"]) -> Float[jax.Array, "n D"]:
    """The nearest matrix with orthonormal rows, by Newton and Schulz; singular values from 1/2 to 3/2."""
    for _ in range(8):
        inner = jnp.matmul(matrix, matrix.T, precision="highest")
        matrix = 1.5 * matrix - 0.5 * jnp.matmul(inner, matrix, precision="highest")
    return matrix


def rotated(key: Key[jax.Array, ""], count: int, size: int) -> Float[jax.Array, "n D"]:
    """An orthonormal basis at random."""
    return edits.orthonormal(jax.random.normal(key, (count, size)))


def unit(vectors: Float[jax.Array, "... D"]) -> Float[jax.Array, "... D"]:
    """Of length 1; what is nothing stays so."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def descended(
    loss: Callable[[Tree, jax.Array, jax.Array], jax.Array],
    start: Tree,
    rule: optax.GradientTransformation,
    key: Key[jax.Array, ""],
    updates: int,
    after: Callable[[Tree], Tree] = lambda x: x,
) -> Tree:
    """Where descent on `loss(parameters, key, share of the steps that are done)` ends, `after` every step."""

    def step(state: tuple[Tree, Any], now: tuple[jax.Array, jax.Array]) -> tuple[tuple[Tree, Any], None]:
        parameters, held = state
        change, held = rule.update(jax.grad(loss)(parameters, *now), held, parameters)
        return (after(optax.apply_updates(parameters, change)), held), None

    shares = jnp.arange(updates) / updates
    return jax.lax.scan(step, (start, rule.init(start)), (jax.random.split(key, updates), shares))[0][0]


def answers(subject: Subject, found: Pairs, edit: Any) -> Float[jax.Array, "B V"]:
    """What the bases say in the row of their last answer, under an edit."""
    return last_outputs(subject, subject.apply(found.base, (), edit)[0], found.base)


def interchanged(subject: Subject, names: Sequence[str], found: Pairs, layer: jax.Array, basis: Basis) -> jax.Array:
    """What the bases say with their part in a basis of one layer replaced, [B, V]."""
    vectors, shares = basis
    edit = at_layer(
        names, layer, lambda i, rows: edits.interchange(found.held[i], vectors, shares, rows=rows), found.rows
    )
    return answers(subject, found, edit)


def margins(found: Pairs, said: Float[jax.Array, "B V"]) -> Float[jax.Array, "B"]:
    """The logit of what should be said minus that of the base's own answer, their log odds in nats."""
    each = jnp.arange(len(said))
    return said[each, found.told] - said[each, found.was]


def cost(subject: Subject, said: Float[jax.Array, "B V"], told: jax.Array) -> Float[jax.Array, ""]:
    """-log-probability (nats) of what should be said."""
    return -jnp.mean(subject.run.experiment.objective.log_probability(said, told))


def subspaces(
    subject: Subject,
    names: Sequence[str],
    variable: str,
    dimensions: int,
    training: Training,
    key: Key[jax.Array, ""],
    mixed: Sequence[bool] = (False,),
) -> Float[jax.Array, "L m k D"]:
    """Of every layer the basis that is learned with right labels, or where `mixed` with shuffled ones."""
    size, several = width(subject, names[0]), len(mixed)

    def one(told: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        layer, shuffled, key = told
        drawn, steps = jax.random.split(key)

        def loss(vectors: jax.Array, key: jax.Array, _: jax.Array) -> jax.Array:
            found = pairs(subject, names, variable, key, training.batch)
            said = interchanged(subject, names, found, layer, (vectors, jnp.ones(dimensions)))
            return cost(subject, said, jnp.where(shuffled, found.mixed, found.told))

        return descended(loss, rotated(drawn, dimensions, size), training.rule, steps, training.updates, polar)

    layer, which = jnp.divmod(jnp.arange(len(names) * several), several)
    keys = jax.random.split(key, len(layer))
    return jax.lax.map(one, (layer, jnp.array(mixed)[which], keys)).reshape(-1, several, dimensions, size)


def judged(
    subject: Subject, names: Sequence[str], variable: str, found: Basis, control: Basis, key: Key[jax.Array, ""]
) -> dict[str, jax.Array]:
    """Shares of fresh pairs that say what they should, with bases [L, n, D] as found, and with shuffled labels.

    "iia", of all pairs; "changed", of those whose answer has to change; "shuffled", of the `control` and the labels it
    was taught; "random", of directions at random, as many as found; "whole", of all; "nothing", of the base as it is.
    """
    size = found[0].shape[-1]
    everything = (jnp.eye(size), jnp.ones(size))

    def one(key: Key[jax.Array, ""], count: int) -> dict[str, jax.Array]:
        drawn, picked = jax.random.split(key)
        told = pairs(subject, names, variable, drawn, count)
        differ = told.told != told.was

        def right(said: jax.Array, label: jax.Array) -> jax.Array:
            return subject.run.experiment.objective.right(said, label).astype(jnp.float32)

        def of(layer: jax.Array) -> dict[str, jax.Array]:
            mine, other = (jax.tree.map(lambda x: x[layer], basis) for basis in (found, control))
            random = (rotated(jax.random.fold_in(picked, layer), *mine[0].shape), mine[1])
            several = jax.tree.map(lambda *x: jnp.stack(x), mine, other, random)
            said = jax.lax.map(lambda basis: interchanged(subject, names, told, layer, basis), several)
            hits = right(said[0], told.told)
            return {
                "iia": jnp.mean(hits),
                "changed": jnp.mean(hits * differ),
                "shuffled": jnp.mean(right(said[1], told.mixed)),
                "random": jnp.mean(right(said[2], told.told)),
                "whole": jnp.mean(right(interchanged(subject, names, told, layer, everything), told.told)),
            }

        shares = jax.lax.map(of, jnp.arange(len(names)))
        nothing = jnp.mean(right(answers(subject, told, {}), told.told))
        return shares | {"nothing": nothing, "pairs": jnp.mean(differ.astype(jnp.float32))}

    items, own = jax.random.split(key)
    # Pairs are drawn by the piece: of the items only their number counts.
    means = subject.averaged(subject.batch(items), lambda batch, key: one(key, len(batch.query)), own)
    share = means.pop("pairs")
    return means | {"changed": means["changed"] / jnp.where(share == 0, 1.0, share)}
