"""One token after another, each from those before it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int, Key, Tree
from positionbias.config.build import Experiment
from positionbias.generation.base import Choose, Generated, Method, Setting, chooser, log_probability
from positionbias.generation.layout import check_kept
from positionbias.models.base import Model
from positionbias.models.sites import Sites
from positionbias.spec import ConfigError, require
from positionbias.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Autoregressive(Method):
    """The last `rows_per_step` rows say the next ones, which are then read; the last ones generated never are.

    More than one a step is for models whose rows say what stands so many places on, such as frame by frame under
    `block_causal`. `cached` keeps the keys and values of earlier rows, or the state of an operator that
    has one; None does where that is the same.
    """

    top_k: int | None = None
    rows_per_step: int = 1
    cached: bool | None = None

    name = "autoregressive"

    def __post_init__(self) -> None:
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "None or a whole number from 1")
        require(self.rows_per_step >= 1, "rows_per_step", self.rows_per_step, "a whole number from 1")

    def rows(self, prompt: int, length: int) -> int:
        rows = self.rows_per_step
        require(length % rows == 0, "length", length, f"a multiple of rows_per_step = {rows}")
        return prompt + length - self.rows_per_step

    def planned(
        self, experiment: Experiment, told: Tokens, setting: Setting, size: int, key: Key[jax.Array, ""] | None
    ) -> tuple[Autoregressive, Tree]:
        words = experiment.blueprint.output.size
        require(self.top_k is None or self.top_k <= words, "top_k", self.top_k, f"at most {words}, the vocabulary")
        first = experiment.architecture.first_row(setting.context) + self.rows_per_step
        require(setting.prompt >= first, "prompt", setting.prompt, f"at least {first} tokens, of which the last answer")
        step, steps = self._step(setting), experiment.architecture.steps
        return dataclasses.replace(self, cached=kept(self.cached, experiment, told, setting, step, steps, True)), ()

    def _step(self, setting: Setting) -> Int[np.ndarray, "S"]:
        """At which step each row is read; 0 for the prompt."""
        place = np.arange(self.rows(setting.prompt, setting.length)) - setting.prompt
        return np.where(place < 0, 0, 1 + place // self.rows_per_step)

    def run(
        self,
        model: Model,
        setting: Setting,
        prompt: jax.Array,
        tokens: Tokens,
        plan: Tree,
        key: jax.Array,
        temperature: jax.Array,
    ) -> Generated:
        choose = chooser(setting.greedy, temperature, self.top_k)
        form = cached if self.cached else uncached
        return form(model, prompt, tokens, setting.context, setting.length, choose, key, self.rows_per_step)


def kept(
    wanted: bool | None,
    experiment: Experiment,
    told: Tokens,
    setting: Setting,
    step: Int[np.ndarray, "... S"],
    steps: bool,
    stored: bool,
) -> bool:
    """Whether each row is read once: as `wanted`, refused where that is not the same; None where it is."""
    if wanted is False:
        return False
    try:
        check_kept(experiment, told, setting.context, step, steps, stored)
    except ConfigError:
        if wanted:
            raise
        return False
    return True


def uncached(
    model: Model,
    prompt: Int[jax.Array, "B P"],
    tokens: Tokens,
    context_length: int,
    length: int,
    choose: Choose,
    key: Key[jax.Array, ""],
    rows: int = 1,
) -> Generated:
    """The whole forward pass at every step: what the other form must equal.

    `tokens` [B, P + length - rows] are those of all rows read; what is not generated yet is padding to the model.
    """
    start, read = prompt.shape[1], tokens.length

    def one(inputs: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = start + step * rows
        so_far = tokens._replace(valid=jnp.asarray(tokens.valid) & (jnp.arange(read) < first))
        outputs = model(inputs[:, :read], so_far, context_length, Sites())
        outputs = jax.lax.dynamic_slice_in_dim(outputs, first - rows, rows, axis=1)
        said = choose(jax.random.fold_in(key, step), outputs)
        return jax.lax.dynamic_update_slice_in_dim(inputs, said, first, axis=1), outputs

    inputs, outputs = jax.lax.scan(one, jnp.pad(prompt, ((0, 0), (0, length))), jnp.arange(length // rows))
    return _generated(inputs, start, outputs)


def cached(
    model: Model,
    prompt: Int[jax.Array, "B P"],
    tokens: Tokens,
    context_length: int,
    length: int,
    choose: Choose,
    key: Key[jax.Array, ""],
    rows: int = 1,
) -> Generated:
    """Every row read once, into keys and values or a state: the prompt in one pass, then `rows` a step."""
    size, start = prompt.shape
    told = tokens.told_context(context_length)

    def read(inputs: jax.Array, first: jax.Array | int, kept: Tree) -> tuple[jax.Array, Tree]:
        places = jnp.broadcast_to(first + jnp.arange(inputs.shape[1]), inputs.shape)
        outputs, kept = model.step(inputs, places, told, context_length, kept)
        return outputs[:, -rows:], kept

    def one(carry: tuple[jax.Array, Tree], step: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        outputs, kept = carry
        said = choose(jax.random.fold_in(key, step), outputs)
        return read(said, start + step * rows, kept), (said, outputs)

    steps = length // rows
    (last, _), (said, outputs) = jax.lax.scan(one, read(prompt, 0, None), jnp.arange(steps - 1))
    said = jnp.concatenate([said, choose(jax.random.fold_in(key, steps - 1), last)[None]])
    inputs = jnp.concatenate([prompt, jnp.moveaxis(said, 0, 1).reshape(size, length)], axis=1)
    return _generated(inputs, start, jnp.concatenate([outputs, last[None]]))


def _generated(inputs: jax.Array, start: int, outputs: Float[jax.Array, "steps B rows V"]) -> Generated:
    steps, size, rows, words = outputs.shape
    outputs = jnp.moveaxis(outputs, 0, 1).reshape(size, steps * rows, words)
    step = jnp.broadcast_to(jnp.repeat(jnp.arange(steps), rows), outputs.shape[:2])
    return Generated(inputs, outputs, log_probability(outputs, inputs[:, start:]), step)
