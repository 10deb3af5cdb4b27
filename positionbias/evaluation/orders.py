"""Answers made of several orders of the segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.config.build import Experiment
from positionbias.evaluation.interventions import Intervention, rearranged, segments_of
from positionbias.evaluation.rows import ORDER_SENSITIVITY
from positionbias.models.decoder_only import DecoderOnly
from positionbias.spec import ConfigError, canonical, member, require
from positionbias.tasks.base import Batch, Condition, Task
from positionbias.tasks.sampling import permutation
from positionbias.tokens import Tokens

MOST = 1024  # orders


class Orders(Intervention):
    """Several orders of the segments, each read on its own, one after another; memory is that of one."""

    orders: int

    share = ORDER_SENSITIVITY
    moves = True

    def __post_init__(self) -> None:
        what = f"a whole number from 1 to {MOST}"
        require(1 <= self.orders <= MOST, f"{canonical(self)}: orders", self.orders, what)

    @property
    def readings(self) -> int:
        return self.orders

    def check(self, task: Task, condition: Condition) -> None:
        segments_of(self, task, condition)

    def change(self, key: jax.Array, example: Batch, task: Task, condition: Condition) -> Batch:
        return rearranged(example, permutation(key, segments_of(self, task, condition)), task)

    def reading(self, key: jax.Array, number: jax.Array, example: Batch, task: Task, condition: Condition) -> Batch:
        return self.change(jax.random.fold_in(key, number), example, task, condition)


@member("interventions", "permutation_average")
@dataclasses.dataclass(frozen=True)
class PermutationAverage(Orders):
    """The answer of most probability on average over `orders` orders of the segments: the one they have, others random.

    The "permutation" baseline of PINE (Wang et al. 2024, arXiv 2407.01100). Random orders may be alike. Where the
    evidence stands is told of the order that the segments have. Ours is the ceiling: the highest of any of the orders,
    each alone.
    """

    orders: int = 8

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        if experiment.objective.targets != "tokens":
            raise ConfigError(
                f"{canonical(self)}: the objective {canonical(experiment.objective)} has answers that are vectors,"
                " which have no probabilities; allowed: one whose answers are tokens."
            )
        return experiment

    def reading(self, key: jax.Array, number: jax.Array, example: Batch, task: Task, condition: Condition) -> Batch:
        count = segments_of(self, task, condition)
        drawn = permutation(jax.random.fold_in(key, number), count)
        return rearranged(example, jnp.where(number == 0, jnp.arange(count), drawn), task)

    def joined(self, so_far: Any, found: Any, number: jax.Array) -> Any:
        first = number == 0
        now = {**found, "given": jax.nn.log_softmax(found["given"].astype(jnp.float32))}
        both = jnp.logaddexp(so_far["given"], now["given"])  # of probabilities the sum, which outputs are free to scale
        more = {"given": both, "ceiling": jnp.fmax(so_far["ceiling"], now["ceiling"])}
        return jax.tree.map(lambda new, old: jnp.where(first, new, old), now, {**so_far, **more})


@member("interventions", "best_order")
@dataclasses.dataclass(frozen=True)
class BestOrder(Orders):
    """The answer of that one of `orders` random orders of the segments in which a segment is attended to most.

    Peak information contribution (Huang et al. 2025, arXiv 2505.11754): the attention from the rows that answer to the
    tokens of a segment, a mean over these rows and heads and a sum over layers, and of all segments the most. Every
    item is measured in the order that is kept; of equal ones the first drawn.
    """

    orders: int = 20

    records = ("layers.*.attention.pattern",)

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        if not isinstance(experiment.architecture, DecoderOnly):
            raise ConfigError(
                f"{canonical(self)}: the attention of model.architecture = {experiment.config.model.architecture} is"
                " not that of one stack; allowed: decoder_only."
            )
        for layer, operator in enumerate(experiment.blueprint.operators):
            if not operator.has_pattern:
                raise ConfigError(
                    f"{canonical(self)}: the operator {canonical(operator)} of layer {layer} has no pattern to read;"
                    " allowed: softmax and others that have one."
                )
        return experiment

    def merit(self, recorded: Mapping[str, jax.Array], tokens: Tokens, rows: jax.Array) -> jax.Array:
        segment = jnp.broadcast_to(tokens.segment, (len(rows), tokens.length))
        to = jnp.zeros(segment.shape)
        for pattern in recorded.values():
            asked = jnp.take_along_axis(pattern, rows[:, None, :, None], axis=2)  # [B, N, A, T]
            to += jnp.mean(asked.astype(jnp.float32), axis=(1, 2))
        # A segment's share stands at each of its tokens, so that how many there are need not be known.
        same = (segment[:, :, None] == segment[:, None, :]) & (segment[:, :, None] > 0)
        return jnp.max(jnp.einsum("BTS,BS->BT", same.astype(jnp.float32), to), axis=-1)

    def joined(self, so_far: Any, found: Any, number: jax.Array) -> Any:
        better = (number == 0) | (found["merit"] > so_far["merit"])

        def kept(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(kept, found, so_far)
