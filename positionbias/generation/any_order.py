"""Tokens in any order, one after another or many at once (ARPG, arXiv 2503.10568)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Int, Key, Tree
from positionbias.config.build import Experiment
from positionbias.generation.autoregressive import kept
from positionbias.generation.base import Choose, Generated, Method, Setting, chooser, log_probability, needs_key
from positionbias.models.base import Model
from positionbias.models.kept import written
from positionbias.models.sites import Sites
from positionbias.models.two_stacks import TwoStacks, TwoStacksModel
from positionbias.spec import ConfigError, require
from positionbias.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class AnyOrder(Method):
    """Places 0..length-1 behind the prompt are said in `order`, in `steps` steps, None for one a token.

    Those of one step are said from the same others, do not see each other, and share a rank; how many they are grows as
    ARPG has it (`counts`). The prompt is told in the order stored. `cached` keeps the keys and values of what was told;
    None does where that is the same.
    """

    order: Literal["stored", "random"] | tuple[int, ...] = "stored"
    steps: int | None = None
    top_k: int | None = None
    cached: bool | None = None

    name = "any_order"

    def planned(
        self, experiment: Experiment, told: Tokens, setting: Setting, size: int, key: Key[jax.Array, ""] | None
    ) -> tuple[AnyOrder, Tree]:
        length, words = setting.length, experiment.blueprint.output.size
        steps = length if self.steps is None else self.steps
        require(1 <= steps <= length, "steps", steps, f"None or a whole number from 1 to length = {length}")
        good = self.top_k is None or 1 <= self.top_k <= words
        require(good, "top_k", self.top_k, f"None or a whole number from 1 to {words}, the vocabulary")
        order = self._order(length, size, key)
        said = np.repeat(np.arange(steps), counts(length, steps))
        step = np.zeros((size, length), np.int32)
        np.put_along_axis(step, order, said[None].astype(np.int32), axis=-1)
        told = told._replace(rank=ranks(setting.prompt, step))
        _check_reach(experiment, told, setting, step)
        full = np.concatenate([np.zeros((size, setting.prompt), np.int32), 1 + step], axis=-1)
        steps = isinstance(experiment.architecture, TwoStacks)
        cached = kept(self.cached, experiment, told, setting, full, steps, False)
        places = rows(order + setting.prompt, said, setting.prompt + length)
        return dataclasses.replace(self, order="stored", steps=steps, cached=cached), {"step": step, "rows": places}

    def _order(self, length: int, size: int, key: jax.Array | None) -> Int[np.ndarray, "B G"]:
        if self.order == "random":
            drawn = jax.random.uniform(jax.random.fold_in(needs_key(key, "a random order"), length), (size, length))
            return np.argsort(np.asarray(drawn), axis=-1)
        order = np.arange(length) if self.order == "stored" else np.array(self.order)
        what = f"'stored', 'random' or every number from 0 to {length - 1} once"
        require(sorted(order) == list(range(length)), "order", self.order, what)
        return np.broadcast_to(order, (size, length))

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
        choose, step = chooser(setting.greedy, temperature, self.top_k), plan["step"]
        tokens = tokens._replace(rank=ranks(setting.prompt, step))
        form = cached if self.cached else uncached
        inputs, outputs = form(model, prompt, tokens, setting.context, plan["rows"], choose, key)
        outputs = outputs[:, setting.prompt :]
        return Generated(inputs, outputs, log_probability(outputs, inputs[:, setting.prompt :]), step)


def counts(length: int, steps: int) -> Int[np.ndarray, "steps"]:
    """How many tokens each step says: length * arccos(s / steps) / (pi / 2) are left after s, and at least one a step.

    The arccos schedule, which begins with about length * 2 / (pi * steps) and says the most in the end.
    """
    left = [length]
    for done in range(1, steps + 1):
        wanted = math.floor(length * math.acos(done / steps) / (math.pi / 2))
        left.append(max(min(wanted, left[-1] - 1), steps - done))
    return -np.diff(left)


def ranks(prompt: int, step: Int[jax.Array, "B G"] | np.ndarray) -> Int[jax.Array, "B S"]:
    """Of the prompt in the order stored, and behind it of what is said at each step."""
    xp = jnp if isinstance(step, jax.Array) else np
    told = xp.broadcast_to(xp.arange(prompt), (len(step), prompt))
    return xp.concatenate([told, prompt + step], axis=-1)


def rows(places: Int[np.ndarray, "B G"], step: Int[np.ndarray, "G"], nowhere: int) -> Int[np.ndarray, "B steps most"]:
    """The `places` in their order as those of every step, filled up with `nowhere`."""
    most, steps = int(np.bincount(step).max()), int(step[-1]) + 1
    found = np.full((len(places), steps, most), nowhere, np.int32)
    within = np.arange(len(step)) - np.searchsorted(step, step)
    found[:, step, within] = places
    return found


def _check_reach(experiment: Experiment, told: Tokens, setting: Setting, step: Int[np.ndarray, "B G"]) -> None:
    """What is said must not depend on what is said later, nor on itself."""
    told = Tokens(*(np.broadcast_to(field, told.rank.shape) for field in told)).told_context(setting.context)
    for i in range(len(step)):
        one = Tokens(*(field[i] for field in told))
        reach = np.asarray(experiment.architecture.reach(experiment.blueprint, one, setting.context))
        seen = reach[setting.prompt :, setting.prompt :] & (step[i] >= step[i][:, None])
        if seen.any():
            q, k = np.argwhere(seen)[0] + setting.prompt
            raise ConfigError(
                f"model.mask: {experiment.config.model.mask} lets row {q} depend on row {k}, which is not said before"
                " it; allowed: masks that read the order, such as 'by_rank(strict=True)'."
            )


def uncached(
    model: Model,
    prompt: Int[jax.Array, "B P"],
    tokens: Tokens,
    context_length: int,
    places: Int[jax.Array, "B steps most"],
    choose: Choose,
    key: Key[jax.Array, ""],
) -> tuple[Int[jax.Array, "B S"], Float[jax.Array, "B S V"]]:
    """The inputs and the outputs they were chosen from, by the whole forward pass at every step.

    `tokens` [B, S] tell ranks; `places` from S on are none.
    """

    def one(inputs: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, here = now
        outputs = model(inputs, tokens, context_length, Sites())
        outputs = jnp.take_along_axis(outputs, here[..., None], axis=1, mode="clip")
        return written(inputs, choose(jax.random.fold_in(key, step), outputs), here), outputs

    inputs, outputs = jax.lax.scan(one, _begun(prompt, tokens), _steps(places))
    return inputs, _in_place(outputs, places, tokens)


def cached(
    model: Model,
    prompt: Int[jax.Array, "B P"],
    tokens: Tokens,
    context_length: int,
    places: Int[jax.Array, "B steps most"],
    choose: Choose,
    key: Key[jax.Array, ""],
) -> tuple[Int[jax.Array, "B S"], Float[jax.Array, "B S V"]]:
    """The same with every row told once, its keys and values kept: the prompt in one pass, then those of a step."""
    assert isinstance(model, TwoStacksModel)
    told = tokens.told_context(context_length)

    def one(
        carry: tuple[jax.Array, Tree], now: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, Tree], jax.Array]:
        inputs, kept = carry
        step, here = now
        outputs = model.ask(here, told, kept)
        said = choose(jax.random.fold_in(key, step), outputs)
        return (written(inputs, said, here), model.tell(said, here, told, kept)), outputs

    kept = model.tell(prompt, jnp.broadcast_to(jnp.arange(prompt.shape[1]), prompt.shape), told, None)
    (inputs, _), outputs = jax.lax.scan(one, (_begun(prompt, tokens), kept), _steps(places))
    return inputs, _in_place(outputs, places, tokens)


def _begun(prompt: jax.Array, tokens: Tokens) -> Int[jax.Array, "B S"]:
    return jnp.pad(prompt, ((0, 0), (0, tokens.length - prompt.shape[1])))


def _steps(places: jax.Array) -> tuple[Int[jax.Array, "steps"], Int[jax.Array, "steps B most"]]:
    return jnp.arange(places.shape[1]), jnp.moveaxis(places, 1, 0)


def _in_place(
    outputs: Float[jax.Array, "steps B most V"], places: jax.Array, tokens: Tokens
) -> Float[jax.Array, "B S V"]:
    """Outputs where they stand; zero where nothing was asked."""
    size, words = len(places), outputs.shape[-1]
    flat = jnp.moveaxis(outputs, 0, 1).reshape(size, -1, words)
    return written(jnp.zeros((size, tokens.length, words), outputs.dtype), flat, places.reshape(size, -1))
