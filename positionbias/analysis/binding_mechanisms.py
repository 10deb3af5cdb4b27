"""Binding mechanisms: by what a model finds the entity that belongs to another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from positionbias.analysis.alignment import descended
from positionbias.analysis.base import (
    STREAM,
    Analysis,
    Axes,
    Labels,
    Subject,
    at_layer,
    last_outputs,
    last_rows,
    sites,
    stacked,
)
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.models import edits
from positionbias.spec import ConfigError, member, require
from positionbias.tasks.base import Batch
from positionbias.tasks.sampling import distinct

FEWEST = 4  # groups: three mechanisms and none say four different things
VARIANTS = ("full", "without_positional", "without_lexical", "without_reflexive")
KINDS = ("positional", "lexical", "reflexive", "unchanged")
LOOKED_AT = 16  # items that show whether a task binds


class Pair(NamedTuple):
    """Items, what is asked instead, and the groups that the mechanisms then name, in the order of `KINDS`."""

    inputs: Int[jax.Array, "B T"]
    groups: Int[jax.Array, "B 4"]
    answers: Int[jax.Array, "B G"]  # the token of the asked slot in each group of the original
    counted: Bool[jax.Array, "B"]  # whether all of these differ, and the item binds as is thought here


@member("analyses", "binding_mechanisms")
@dataclasses.dataclass(frozen=True)
class BindingMechanisms(Analysis):
    """What a stream carries that finds the partner of an entity: its group's place, its name, or the answer itself.

    "Mixing Mechanisms" (2025, arXiv 2510.06182). A counterfactual has the groups of an item moved in a circle, asks of
    another group, and has two answers swapped, so that its stream behind a layer, put into the item in the row of the
    last answer, makes each mechanism say something else there: "positional", the group of the item at the place of the
    counterfactual's; "lexical", the partner of the entity that the counterfactual names; "reflexive", the
    counterfactual's own answer; "unchanged", the item's. These arrays are the probabilities of the four among the
    answers of all groups, by layer; "by_group" is that of the positional one by its group.

    "full" is the similarity (1 - Jensen-Shannon divergence in bits, on items it was not fitted to) of the patched
    distribution over groups a to the softmax of w exp(-(a - i_P)^2 / 2 s(i_P)^2) + u[i_L] [a = i_L] + r[i_R] [a = i_R],
    s quadratic in the place; three more leave one term out each, and "even" is that of equal shares. Of items whose
    answers are all different; "counted" is their share, and where it is 0 the others are too.
    """

    updates: int = 300
    rate: float = 0.05

    axes: ClassVar[Axes] = {
        **dict.fromkeys((*KINDS, *VARIANTS, "even"), ("layer",)),
        "by_group": ("layer", "group"),
        "counted": (),
    }
    shown = "by_group"
    alike = (STREAM,)

    def __post_init__(self) -> None:
        require(1 <= self.updates <= 100_000, "updates", self.updates, "a whole number from 1 to 100000")
        require(0 < self.rate <= 1000, "rate", self.rate, "a number above 0, up to 1000")

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        return {"group": tuple(map(str, range(subject.run.task.segments(subject.condition))))}

    def check(self, subject: Subject) -> None:
        task, told = subject.run.task, subject.run.config.task
        allowed = f"a task that binds entities in {FEWEST} or more groups of equal size and asks by one for its partner"
        subject.require_tokens(allowed, read=True, said=True)
        require(task.movable, "task", told, allowed)
        require(task.segments(subject.condition) >= FEWEST, "task", told, allowed)
        sizes = np.bincount(np.asarray(task.tokens(subject.condition).segment).ravel())[1:]
        require(len(set(sizes.tolist())) == 1, "task", told, allowed)
        batch = subject.batch(jax.random.key(0), LOOKED_AT)
        binds = batch.evidence.shape[-1] == 2 and bool(jnp.all(self._binds(batch, int(sizes[0]))))
        if not binds:
            raise ConfigError(f"--analyses: task = {told} is not allowed with binding_mechanisms; allowed: {allowed}.")

    def _binds(self, batch: Batch, size: int) -> Bool[jax.Array, "B"]:
        """Whether the last answer's row holds the entity that is named, and both of its evidence are of one group."""
        each = jnp.arange(len(batch.query))
        named, answer = batch.evidence[:, -1, 0], batch.evidence[:, -1, 1]
        segment = jnp.broadcast_to(jnp.asarray(batch.tokens.segment), batch.inputs.shape)
        same = (segment[each, named] == segment[each, answer]) & (segment[each, named] > 0)
        return (
            same & (batch.inputs[each, batch.query[:, -1]] == batch.inputs[each, named]) & (abs(named - answer) < size)
        )

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        count = subject.run.task.segments(subject.condition)
        names = sites(layers, STREAM)

        def one(batch: Batch, pair: Pair) -> Float[jax.Array, "B L G"]:
            rows = last_rows(subject, batch)[:, None]
            held = stacked(subject, names, batch._replace(inputs=pair.inputs))

            def at(layer: jax.Array) -> Float[jax.Array, "B G"]:
                there = at_layer(names, layer, lambda i, rows: edits.replace(held[i], rows=rows), rows)
                outputs = last_outputs(subject, subject.apply(batch, (), there)[0], batch)
                return jax.nn.softmax(jnp.take_along_axis(outputs, pair.answers, axis=-1))

            return jnp.moveaxis(jax.lax.map(at, jnp.arange(len(layers))), 0, 1)

        def asked(key: Key[jax.Array, ""]) -> tuple[Float[jax.Array, "B L G"], Pair]:
            drawn, moved = jax.random.split(key)
            batch = subject.batch(drawn)
            pair = self._pair(subject, batch, moved)
            return subject.each(batch, one, beside=pair), pair

        (fitted, to), (found, pair) = (asked(k) for k in jax.random.split(key))
        weight = pair.counted.astype(jnp.float32)
        share = jnp.mean(weight)
        weight = weight / jnp.maximum(jnp.sum(weight), 1)
        by_kind = jnp.einsum("b,bla,bka->lk", weight, found, jax.nn.one_hot(pair.groups, count), precision="highest")
        told = {name: by_kind[:, i] for i, name in enumerate(KINDS)}
        place = jax.nn.one_hot(pair.groups[:, 0], count) * weight[:, None]  # [B, G]
        summed = jnp.einsum("bg,blg->lg", place, found, precision="highest")
        told["by_group"] = summed / jnp.maximum(jnp.sum(place, axis=0), 1e-9)

        def similarity(x: tuple[jax.Array, jax.Array]) -> jax.Array:
            return jax.vmap(lambda keep: self._similarity(count, keep, (to, x[0]), (pair, x[1])))(_KEPT)

        by_layer = jax.lax.map(similarity, (jnp.moveaxis(fitted, 1, 0), jnp.moveaxis(found, 1, 0)))  # [L, variant]
        told |= {name: by_layer[:, i] for i, name in enumerate(VARIANTS)}
        told["even"] = jnp.einsum("b,bl->l", weight, 1 - divergence(found, jnp.full(count, 1 / count)))
        return jax.tree.map(lambda x: jnp.where(share > 0, x, 0.0), told) | {"counted": share}

    def _similarity(
        self, count: int, keep: Float[jax.Array, "3"], fit: tuple[Pair, jax.Array], test: tuple[Pair, jax.Array]
    ) -> Float[jax.Array, ""]:
        """1 - JSD on `test` of the model with the terms `keep`, fitted to `fit`: pairs and shares [B, G] each."""

        def loss(held: dict[str, jax.Array], pair: Pair, shares: jax.Array) -> jax.Array:
            apart = divergence(shares, jax.nn.softmax(mixed(held, keep, pair.groups, count)))
            weight = pair.counted.astype(jnp.float32)
            return jnp.sum(weight * apart) / jnp.maximum(jnp.sum(weight), 1)

        start = {
            "positional": jnp.ones(()),
            "width": jnp.zeros(3),
            "lexical": jnp.ones(count),
            "reflexive": jnp.ones(count),
        }
        rule, nothing = optax.adam(self.rate), jax.random.key(0)  # as every step sees all pairs
        held = descended(lambda held, _, __: loss(held, *fit), start, rule, nothing, self.updates)
        return 1 - loss(held, *test)

    def _pair(self, subject: Subject, batch: Batch, key: Key[jax.Array, ""]) -> Pair:
        """Every item's counterfactual, which groups the mechanisms name for it, and all answers of the item."""
        count = subject.run.task.segments(subject.condition)
        segment = jnp.broadcast_to(jnp.asarray(batch.tokens.segment), batch.inputs.shape)
        size = int(np.bincount(np.asarray(subject.run.task.tokens(subject.condition).segment).ravel())[1])
        counted = self._binds(batch, size)

        def one(key: jax.Array, inputs: jax.Array, segment: jax.Array, evidence: jax.Array, query: jax.Array) -> Pair:
            start = jnp.argmax(segment == 1 + jnp.arange(count)[:, None], axis=-1)  # [G]
            own = segment[evidence[0]] - 1
            named, asked = evidence - start[own]
            place, name, answer = (own + 1 + distinct(key, 3, count - 1)) % count
            moved = (name - place) % count
            rows = start[:, None] + jnp.arange(size)
            answers = inputs[start + asked]
            other = inputs.at[rows].set(inputs[rows[(jnp.arange(count) + moved) % count]])
            other = other.at[start[place] + asked].set(answers[answer])
            other = other.at[start[(answer - moved) % count] + asked].set(answers[name])
            other = other.at[query].set(inputs[start[name] + named])
            apart = jnp.sum(answers[:, None] == answers) == count
            return Pair(other, jnp.stack([place, name, answer, own]), answers, apart)

        keys = jax.random.split(key, len(batch.query))
        pair = jax.vmap(one)(keys, batch.inputs, segment, batch.evidence[:, -1], batch.query[:, -1])
        return pair._replace(counted=pair.counted & counted)


_KEPT = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]], np.float32)  # of the three terms, by VARIANTS


def mixed(
    held: dict[str, jax.Array], keep: Float[jax.Array, "3"], groups: Int[jax.Array, "B 4"], count: int
) -> Float[jax.Array, "B G"]:
    """The scores of groups that the three mechanisms together give."""
    place, name, answer = groups[:, 0], groups[:, 1], groups[:, 2]
    a, x = jnp.arange(count), place / count
    width = jax.nn.softplus(held["width"][0] + held["width"][1] * x + held["width"][2] * x**2) + 0.1
    near = jnp.exp(-jnp.square((a - place[:, None]) / width[:, None]) / 2)
    at_name, at_answer = (jax.nn.one_hot(i, count) for i in (name, answer))
    found = keep[0] * held["positional"] * near
    found += keep[1] * held["lexical"][name][:, None] * at_name
    return found + keep[2] * held["reflexive"][answer][:, None] * at_answer


def divergence(p: Float[jax.Array, "... G"], q: Float[jax.Array, "... G"]) -> Float[jax.Array, "..."]:
    """Jensen-Shannon divergence in bits, 0 to 1."""
    middle = (p + q) / 2

    def apart(x: jax.Array) -> jax.Array:
        known = x > 1e-12
        return jnp.sum(jnp.where(known, x * jnp.log2(jnp.where(known, x / middle, 1.0)), 0.0), axis=-1)

    return (apart(p) + apart(q)) / 2
