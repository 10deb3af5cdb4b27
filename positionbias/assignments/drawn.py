"""Assignments that every example draws anew, in training and in evaluation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Mapped
from positionbias.assignments.base import Assignment
from positionbias.assignments.order import FARTHEST
from positionbias.spec import ConfigError, member, require
from positionbias.tasks.sampling import distinct, permutation
from positionbias.tokens import Tokens


class Drawn(Assignment):
    """Drawn, an example at a time."""

    drawn = True

    def positions(self, tokens: Tokens) -> Mapped:
        return tokens.position


@member("assignments", "random")
@dataclasses.dataclass(frozen=True)
class Random(Drawn):
    """The positions of the sequence in random order: what a scheme tells has nothing to do with order, a control."""

    def draw(self, key: jax.Array, tokens: Tokens) -> jax.Array:
        return jnp.asarray(tokens.position)[permutation(key, tokens.length)]


@member("assignments", "randomized")
@dataclasses.dataclass(frozen=True)
class Randomized(Drawn):
    """In order, but with random gaps: as many distinct positions of 0..`longest`-1 as there are tokens, sorted.

    Randomized positional encodings (Ruoss et al. 2023, arXiv 2305.16843), with which sequences longer than those
    trained on bring no new positions. Padding in front is told the first.
    """

    longest: int

    def __post_init__(self) -> None:
        require(1 <= self.longest <= FARTHEST, "longest", self.longest, f"a whole number from 1 to {FARTHEST}")

    def reach(self, tokens: Tokens) -> int:
        if self.longest < tokens.length:
            raise ConfigError(
                f"longest = {self.longest} has no position for each of {tokens.length} tokens; allowed: a whole number"
                f" from {tokens.length}."
            )
        return self.longest

    def draw(self, key: jax.Array, tokens: Tokens) -> jax.Array:
        return jnp.sort(distinct(key, tokens.length, self.longest))[jnp.asarray(tokens.position)]


@member("assignments", "offset")
@dataclasses.dataclass(frozen=True)
class Offset(Drawn):
    """In order from a random place on, 0 to `most`.

    With one-hot positions it is what Reddy 2023 (arXiv 2312.03002) trains: the whole sequence shifted each time.
    """

    most: int

    def __post_init__(self) -> None:
        require(0 <= self.most <= FARTHEST, "most", self.most, f"a whole number from 0 to {FARTHEST}")

    def reach(self, tokens: Tokens) -> int:
        return super().reach(tokens) + self.most

    def draw(self, key: jax.Array, tokens: Tokens) -> jax.Array:
        return jnp.asarray(tokens.position) + jax.random.randint(key, (), 0, self.most + 1)
