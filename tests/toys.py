"""Members that exist for tests only: a short convolution, lists of random lengths, facts, and masked denoising."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import spec
from positionbias.objectives.next_token import NextToken
from positionbias.operators.base import Operator, SiteFunction
from positionbias.positions.base import Matrix
from positionbias.tasks.base import Batch, Condition, Size, Task


class Reads(SiteFunction):
    """Every site, by a function of its name and value."""

    def __init__(self, function):
        self.function = function

    def __call__(self, name, value):
        return self.function(name, value)

    def wanted(self, name):
        return True


@spec.member("operators", "toy_convolution")
@dataclasses.dataclass(frozen=True)
class ToyConvolution(Operator):
    """Each feature is a weighted sum of its last `width` values that the mask allows."""

    width: int = 2

    reads = "stream"
    patterns = frozenset({"causal_self", "noncausal_self"})
    uses_rotation = False
    uses_bias = False
    whole = "it is a toy"

    def parameters(self, dims):
        return {"kernel": Matrix((self.width, dims.width), "convolution", self.width, initializer="fan_in(scale=0.5)")}

    def mix(self, x, tokens, mask, params, site):
        allowed = jnp.asarray(mask.dense(tokens, tokens))
        lag = jnp.asarray(tokens.rows().index - tokens.columns().index)
        taps = [
            (allowed & (lag == d)).astype(x.dtype) @ x * params["kernel"][d].astype(x.dtype) for d in range(self.width)
        ]
        return sum(taps)

    def visible(self, tokens_q, tokens_k, allowed):
        lag = tokens_q.rows().index - tokens_k.columns().index
        return allowed & (lag >= 0) & (lag < self.width)

    def state_size(self, dims):
        return (self.width - 1) * dims.width


@spec.member("tasks", "two_lists")
@dataclasses.dataclass(frozen=True)
class TwoLists(Task):
    """Six letters in two lists (segments) that meet at a random place; the last row says the letter at slot 2."""

    letters: int = 4

    shared_tokens = False
    no_baselines: ClassVar = {"nearest": "letters are alike wherever they stand"}

    @property
    def input(self):
        return Size("tokens", self.letters)

    @property
    def output(self):
        return self.input

    def conditions(self):
        return (Condition("train"),)

    def length(self, condition):
        return 6

    def context_length(self, condition):
        return 4

    def query_rows(self, condition):
        return np.array([5])

    def prior(self, condition):
        return {"query": np.ones(1), "evidence": np.ones(1)}

    def sample(self, key, condition, world=()):
        key, where = jax.random.split(key)
        letters = jax.random.randint(key, (6,), 0, self.letters, jnp.int32)
        start = jax.random.randint(where, (), 1, 6)
        zero = jnp.zeros(1, jnp.int32)
        tokens = self.tokens(condition)
        return Batch(
            inputs=letters,
            targets=jnp.zeros(6, jnp.int32).at[5].set(letters[2]),
            weights=jnp.zeros(6).at[5].set(1.0),
            tokens=tokens._replace(segment=(tokens.index >= start).astype(jnp.int32)),
            query=zero + 5,
            evidence=zero[:, None] + 2,
            order=zero,
            distance=zero + 3,
            n_distractors=zero + 3,
            source=zero - 1,
            query_slot=zero,
            evidence_slot=zero,
        )

    def ceiling(self, example, visible):
        return jnp.where(visible[example.query, 2], 1.0, 1 / self.letters)

    def baselines(self, example, visible):
        return dict.fromkeys(("chance", "majority", "order_free"), jnp.full(1, 1 / self.letters))


@spec.member("tasks", "facts")
@dataclasses.dataclass(frozen=True)
class Facts(Task):
    """Every letter stands for a number, the same one throughout a world; a letter is shown, its number asked."""

    letters: int = 4
    numbers: int = 64

    @property
    def input(self):
        return Size("tokens", self.letters)

    @property
    def output(self):
        return Size("tokens", self.numbers)

    def conditions(self):
        return (Condition("train"),)

    def length(self, condition):
        return 1

    def context_length(self, condition):
        return 0

    def query_rows(self, condition):
        return np.array([0])

    def prior(self, condition):
        return {"query": np.ones(1), "evidence": np.ones(1)}

    def world(self, key):
        return {"number": jax.random.randint(key, (self.letters,), 0, self.numbers, jnp.int32)}

    def sample(self, key, condition, world=()):
        letter = jax.random.randint(key, (1,), 0, self.letters, jnp.int32)
        zero = jnp.zeros(1, jnp.int32)
        return Batch(
            inputs=letter,
            targets=world["number"][letter],
            weights=jnp.ones(1),
            tokens=self.tokens(condition),
            query=zero,
            evidence=zero[:, None],
            order=zero,
            distance=zero,
            n_distractors=zero,
            source=zero - 1,
            query_slot=zero,
            evidence_slot=zero,
        )

    def ceiling(self, example, visible):
        return jnp.full(1, jnp.nan)

    def baselines(self, example, visible):
        return {"chance": jnp.full(1, 1 / self.numbers), "order_free": jnp.full(1, 1 / self.numbers)}


@spec.member("tasks", "rumours")
@dataclasses.dataclass(frozen=True)
class Rumours(Facts):
    """Facts of which a share is told `wrong`, as the number of the next letter; replicas may differ in it."""

    wrong: float = 0.25

    traced = ("wrong",)

    def sample(self, key, condition, world=()):
        item = super().sample(key, condition, world)
        other = world["number"][(item.inputs + 1) % self.letters]
        told = jax.random.uniform(jax.random.fold_in(key, 1), (1,)) < self.wrong
        return item._replace(targets=jnp.where(told, other, item.targets))

    def baselines(self, example, visible):
        return {"chance": jnp.full(1, 1 / self.numbers), "order_free": jnp.full(1, 1 - self.wrong)}


@spec.member("objectives", "hide_some")
@dataclasses.dataclass(frozen=True)
class HideSome(NextToken):
    """Inputs are hidden by `token`, each with chance `rate`, and every hidden row says what it was; asked are answers.

    Measured, the last input is hidden.
    """

    token: int = 8
    rate: float = 0.5

    def input(self, size):
        return Size(size.kind, max(size.size, self.token + 1))

    def prepare(self, key, batch, task, condition):
        hidden = jax.random.bernoulli(key, self.rate, batch.inputs.shape)
        return batch._replace(
            inputs=jnp.where(hidden, self.token, batch.inputs), targets=batch.inputs, weights=hidden.astype(jnp.float32)
        )

    def ask(self, batch, task, condition):
        return batch._replace(inputs=batch.inputs.at[..., -1].set(self.token))


def register(monkeypatch):
    """Make the toys known by name for one test."""
    index = {axis: dict(members) for axis, members in spec._index().items()}
    for toy in (ToyConvolution, TwoLists, Facts, Rumours, HideSome):
        index[toy.axis][toy.spec_name] = __name__
    monkeypatch.setattr(spec, "_index", lambda: index)
