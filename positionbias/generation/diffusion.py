"""All at once, hidden at first: at every step some of the hidden tokens are committed (LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.config.build import Experiment
from positionbias.generation.base import Generated, Method, Setting, log_probability, needs_key
from positionbias.models.base import Model
from positionbias.models.sites import Sites
from positionbias.spec import require
from positionbias.tokens import Tokens

Predict = Callable[[jax.Array, jax.Array], jax.Array]  # from inputs and what is hidden of them, [B, T], to [B, T, V]
Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
By = Literal["confidence", "random"]


@dataclasses.dataclass(frozen=True)
class Diffusion(Method):
    """`steps` passes over the whole sequence, None for one a token; each commits as many, or one more.

    Those of which the model is surest, or random ones (`by`). `blocks` shares out the tokens, and the steps, from left
    to right: a block is begun when the one before is done. At a temperature logits get Gumbel noise.
    """

    steps: int | None = None
    blocks: int = 1
    by: By = "confidence"

    name = "diffusion"

    def planned(
        self, experiment: Experiment, told: Tokens, setting: Setting, size: int, key: Key[jax.Array, ""] | None
    ) -> tuple[Diffusion, Tree]:
        length, steps = setting.length, setting.length if self.steps is None else self.steps
        fits = self.blocks >= 1 and length % self.blocks == 0
        require(fits, "blocks", self.blocks, f"a whole number that divides length = {length}")
        fits = self.blocks <= steps <= length and steps % self.blocks == 0
        require(fits, "steps", steps, f"None or a multiple of blocks = {self.blocks} up to length = {length}")
        first = experiment.architecture.first_row(setting.context)
        require(setting.prompt >= first, "prompt", setting.prompt, f"at least {first} tokens, the context")
        if self.by == "random":
            needs_key(key, "which token is committed")
        return dataclasses.replace(self, steps=steps), ()

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
        assert self.steps is not None
        counts, of_step, block = schedule(setting.length, self.steps, self.blocks)
        inputs = jnp.pad(prompt, ((0, 0), (0, setting.length)))
        blocks = np.append(np.full(setting.prompt, -1), block)
        noise = None if setting.greedy else temperature
        predict = predictor(model, tokens, setting.context, setting.mask_token)
        inputs, outputs, step = decode(predict, inputs, blocks, counts, of_step, key, noise, self.by)
        outputs = outputs[:, setting.prompt :]
        said = log_probability(outputs, inputs[:, setting.prompt :])
        return Generated(inputs, outputs, said, step[:, setting.prompt :])


def schedule(
    length: int, steps: int, blocks: int
) -> tuple[Int[np.ndarray, "steps"], Int[np.ndarray, "steps"], Int[np.ndarray, "length"]]:
    """How many tokens each step commits, in which block, and the block of each token."""
    few, more = divmod(length // blocks, steps // blocks)
    counts = few + (np.arange(steps // blocks) < more)
    return np.tile(counts, blocks), np.repeat(np.arange(blocks), steps // blocks), np.arange(length) * blocks // length


def predictor(model: Model, tokens: Tokens, context_length: int, mask_token: int) -> Predict:
    """The model's outputs with inputs hidden as its objective hides them."""

    def predict(inputs: jax.Array, hidden: jax.Array) -> jax.Array:
        told = tokens._replace(hidden=hidden.astype(jnp.int32))
        outputs = model(jnp.where(hidden, mask_token, inputs), told, context_length, Sites())
        assert outputs.shape[-1] <= mask_token, "the mask token is never said"
        return outputs

    return predict


def decode(
    predict: Predict,
    inputs: Int[jax.Array, "B T"],
    block: Int[np.ndarray, "T"],
    counts: Int[np.ndarray, "steps"],
    of_step: Int[np.ndarray, "steps"],
    key: Key[jax.Array, ""],
    temperature: Float[jax.Array, ""] | None,
    by: By = "confidence",
) -> tuple[Int[jax.Array, "B T"], Float[jax.Array, "B T V"], Int[jax.Array, "B T"]]:
    """The inputs with all tokens of a `block` from 0 said, the outputs when each was committed, and at which step.

    Step s commits `counts[s]` tokens of block `of_step[s]`. Prompts are of block -1, and of step -1. Greedy where
    `temperature` is None.
    """
    hidden = jnp.broadcast_to(jnp.asarray(block) >= 0, inputs.shape)
    shape = jax.eval_shape(predict, inputs, hidden)

    def one(carry: Carry, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Carry, None]:
        inputs, hidden, chosen_from, committed = carry
        step, count, here = now
        draw, pick = jax.random.split(jax.random.fold_in(key, step))
        outputs = predict(inputs, hidden)
        noisy = outputs if temperature is None else outputs + temperature * jax.random.gumbel(draw, outputs.shape)
        said = jnp.argmax(noisy, axis=-1).astype(inputs.dtype)
        sure = log_probability(outputs, said) if by == "confidence" else jax.random.uniform(pick, said.shape)
        new = _first(jnp.where(hidden & (block == here), sure, -jnp.inf), count) & hidden
        return (
            jnp.where(new, said, inputs),
            hidden & ~new,
            jnp.where(new[..., None], outputs, chosen_from),
            jnp.where(new, step, committed),
        ), None

    start = inputs, hidden, jnp.zeros(shape.shape, shape.dtype), jnp.full(inputs.shape, -1)
    steps = jnp.arange(len(counts)), jnp.asarray(counts), jnp.asarray(of_step)
    (inputs, _, outputs, committed), _ = jax.lax.scan(one, start, steps)
    return inputs, outputs, committed


def log_likelihood(
    predict: Predict,
    inputs: Int[jax.Array, "B T"],
    unknown: Bool[jax.Array, "B T"],
    key: Key[jax.Array, ""],
    draws: int = 128,
) -> Float[jax.Array, "B"]:
    """An estimate of the log-probability (nats) of the `unknown` inputs given the others; LLaDA, equation 6.

    Each draw hides exactly k of the n unknown ones, k uniform on 1..n, and weighs what is said of them by n / k. Its
    expectation is a lower bound, and exact where `predict` has the conditionals of one distribution. Where n is 1, one
    draw is.
    """
    size = jnp.sum(unknown, axis=-1)

    def one(key: jax.Array) -> jax.Array:
        count_key, which_key = jax.random.split(key)
        count = jax.random.randint(count_key, size.shape, 1, size + 1)[:, None]
        order = jnp.where(unknown, jax.random.uniform(which_key, inputs.shape), -jnp.inf)
        hidden = _first(order, count) & unknown
        said = log_probability(predict(inputs, hidden), inputs)
        return jnp.sum(jnp.where(hidden, said, 0.0), axis=-1) * size / count[:, 0]

    return jnp.mean(jax.lax.map(one, jax.random.split(key, draws)), axis=0)


def _first(score: Float[jax.Array, "B T"], count: jax.Array) -> Bool[jax.Array, "B T"]:
    """Which are the `count` largest of a row; of equal ones those in front."""
    return jnp.argsort(jnp.argsort(-score, axis=-1, stable=True), axis=-1) < count
