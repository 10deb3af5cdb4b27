"""What every way to generate shares: what it returns, how a token is chosen, and the protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from positionbias.arrays import Float, Int, Key, Tree
from positionbias.config.build import Experiment
from positionbias.models.base import Model
from positionbias.spec import ConfigError
from positionbias.tokens import Tokens

Choose = Callable[[jax.Array, jax.Array], jax.Array]  # from a key and outputs [B, T, V] to tokens i32[B, T]


class Generated(NamedTuple):
    """Prompts of P tokens with `length` more, G, behind each."""

    tokens: Int[jax.Array, "B P+G"]
    outputs: Float[jax.Array, "B G V"]  # the logits that each token was chosen from
    log_probability: Float[jax.Array, "B G"]  # nats, of each token under these, whatever the temperature
    step: Int[jax.Array, "B G"]  # the step, from 0, at which each was chosen


@dataclasses.dataclass(frozen=True)
class Setting:
    """All of a call that a program is compiled for, beside the shapes of its arrays."""

    prompt: int  # P
    length: int  # G
    context: int  # how many of the prompt's tokens are the context
    greedy: bool
    mask_token: int  # of objectives that have one, the first id behind the task's vocabulary


class Method:
    """A way to generate; its fields are the options that it has."""

    name: ClassVar[str]

    def rows(self, prompt: int, length: int) -> int:
        """How many rows the model reads, S."""
        return prompt + length

    def planned(
        self, experiment: Experiment, told: Tokens, setting: Setting, size: int, key: Key[jax.Array, ""] | None
    ) -> tuple[Method, Tree]:
        """The method with its options resolved, and arrays that say what is generated when, () where it has none.

        For `size` prompts; `told` are the tokens of the S rows, numpy, [S] or [B, S]. Raises ConfigError where the
        model cannot generate so.
        """
        raise NotImplementedError

    def run(
        self,
        model: Model,
        setting: Setting,
        prompt: Int[jax.Array, "B P"],
        tokens: Tokens,
        plan: Tree,
        key: Key[jax.Array, ""],
        temperature: Float[jax.Array, ""],
    ) -> Generated:
        """Generate: pure, to be compiled. `tokens` are those of all rows read, [B, S]."""
        raise NotImplementedError


def needs_key(key: Key[jax.Array, ""] | None, what: str) -> Key[jax.Array, ""]:
    """The key; ConfigError where `what` is drawn and there is none."""
    if key is None:
        raise ConfigError(f"key: {what} is drawn, and needs one; allowed: jax.random.key(0), say.")
    return key


def chooser(greedy: bool, temperature: Float[jax.Array, ""], top_k: int | None = None) -> Choose:
    """The likeliest token if `greedy`; else one drawn at a temperature, from the `top_k` likeliest if that is given."""

    def choose(key: jax.Array, outputs: jax.Array) -> jax.Array:
        if greedy:
            return jnp.argmax(outputs, axis=-1).astype(jnp.int32)
        logits = outputs / temperature
        if top_k is not None:
            least = jax.lax.top_k(logits, top_k)[0][..., -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)

    return choose


def log_probability(outputs: Float[jax.Array, "... V"], said: Int[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """Of each token, nats."""
    return jnp.take_along_axis(jax.nn.log_softmax(outputs), said[..., None], axis=-1)[..., 0]
