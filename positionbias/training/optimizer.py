"""Update rules and learning-rate schedules.

A schedule is the share of its peak that the learning rate has, so that the peak may be traced: replicas of one program
can each have their own. A rule gives a direction; the loop steps by minus learning rate times share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from positionbias.arrays import Float, Int, Tree
from positionbias.config import schema
from positionbias.spec import member, require

Traced = float | jax.Array


class Rule:
    """An update rule."""

    axis = "optimizers"
    weight_decay: float = 0.0  # for rules that have none

    def direction(self) -> optax.GradientTransformation:
        """From clipped gradients to a direction, without learning rate and weight decay."""
        raise NotImplementedError


@member("optimizers", "adamw")
@dataclasses.dataclass(frozen=True)
class AdamW(Rule):
    """Adam with decoupled weight decay on every trained parameter (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.b1 < 1, "b1", self.b1, "a number from 0 to below 1")
        require(0 <= self.b2 < 1, "b2", self.b2, "a number from 0 to below 1")
        require(0 < self.eps < math.inf, "eps", self.eps, "a number above 0")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "a number from 0")

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)


@member("optimizers", "sgd")
@dataclasses.dataclass(frozen=True)
class Sgd(Rule):
    """Gradient descent, with heavy-ball momentum if `momentum` is above 0, and decoupled weight decay."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number from 0 to below 1")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "a number from 0")

    def direction(self) -> optax.GradientTransformation:
        return optax.trace(decay=self.momentum) if self.momentum else optax.identity()


class Schedule:
    """The share of the peak learning rate over the part of training after warm-up."""

    axis = "schedules"

    def share(self, progress: Float[jax.Array, ""]) -> Float[jax.Array, ""]:
        """The share at `progress`, which runs from 0 at the end of warm-up to 1 at the last step."""
        raise NotImplementedError


@member("schedules", "constant")
@dataclasses.dataclass(frozen=True)
class ConstantRate(Schedule):
    """The peak throughout."""

    def share(self, progress: jax.Array) -> jax.Array:
        return jnp.ones_like(progress)


@member("schedules", "cosine")
@dataclasses.dataclass(frozen=True)
class CosineRate(Schedule):
    """Half a cosine from the peak down to `final` times the peak."""

    final: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.final <= 1, "final", self.final, "a number from 0 to 1")

    def share(self, progress: jax.Array) -> jax.Array:
        return self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


@member("schedules", "linear")
@dataclasses.dataclass(frozen=True)
class LinearRate(Schedule):
    """A straight line from the peak down to `final` times the peak."""

    final: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.final <= 1, "final", self.final, "a number from 0 to 1")

    def share(self, progress: jax.Array) -> jax.Array:
        return 1 - (1 - self.final) * progress


def rate_share(
    schedule: Schedule, warmup: int | Int[jax.Array, ""], steps: int, step: Int[jax.Array, ""]
) -> Float[jax.Array, ""]:
    """The learning rate at `step` (counted from 0) as a share of its peak: linear warm-up, then the schedule."""
    progress = jnp.clip((step - warmup) / jnp.maximum(steps - 1 - warmup, 1), 0.0, 1.0)
    return jnp.where(step < warmup, (step + 1) / jnp.maximum(warmup, 1), schedule.share(progress))


def transformation(
    config: schema.Optimizer,
    rule: Rule,
    weight_decay: Traced,
    norm: Callable[[Tree], Float[jax.Array, ""]] = optax.tree.norm,
) -> optax.GradientTransformation:
    """Clipping by `norm`, the rule's direction, and decoupled weight decay, which the learning rate then scales too."""
    parts = []
    if config.clip_value is not None:
        parts.append(optax.clip(config.clip_value))
    if config.clip_norm is not None:
        parts.append(_clip_by(norm, config.clip_norm))
    return optax.chain(*parts, rule.direction(), optax.add_decayed_weights(weight_decay))


def _clip_by(norm: Callable[[Tree], Float[jax.Array, ""]], most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, of gradients that one device may hold a part of only."""

    def update(grads: Tree, state: optax.EmptyState, params: Tree = None) -> tuple[Tree, optax.EmptyState]:
        size = norm(grads)
        return jax.tree.map(lambda x: jnp.where(size < most, x, x / size * most), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
