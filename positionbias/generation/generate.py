"""Generating with the weights of a run, by the method that its objective trains for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from positionbias.arrays import Bool, Float, Int, Key, Mapped, Tree
from positionbias.config.build import Experiment
from positionbias.generation.any_order import AnyOrder
from positionbias.generation.autoregressive import Autoregressive
from positionbias.generation.base import Generated, Method, Setting, needs_key
from positionbias.generation.diffusion import Diffusion, log_likelihood, predictor
from positionbias.generation.given import check_key, padding, plain, sequences, whole
from positionbias.generation.layout import check_lengths, check_tables, layout
from positionbias.models.base import Model
from positionbias.objectives.base import Objective
from positionbias.objectives.denoising import Hiding
from positionbias.objectives.next_token import CrossEntropy
from positionbias.objectives.random_order import RandomOrder
from positionbias.spec import ConfigError, construct, require, unknown
from positionbias.tasks.base import LONGEST, Condition
from positionbias.tokens import Tokens

MOST_DRAWS = 2**20
TEMPERATURES = 1e-6, 1e6  # beyond, float32 makes nothing or anything of logits
METHODS: dict[str, type[Method]] = {method.name: method for method in (Autoregressive, Diffusion, AnyOrder)}
# The first that fits an objective; what is not here says no tokens.
OF_OBJECTIVE: tuple[tuple[type[Objective], type[Method]], ...] = (
    (Hiding, Diffusion),
    (RandomOrder, AnyOrder),
    (CrossEntropy, Autoregressive),
)


def generate(
    experiment: Experiment,
    weights: dict[str, Tree],
    prompt: Int[Mapped, "B P"],
    length: int,
    method: str | None = None,
    key: Key[jax.Array, ""] | None = None,
    temperature: float = 0.0,
    condition: Condition | None = None,
    valid: Bool[Mapped, "B P"] | None = None,
    tokens: Tokens | None = None,
    several: bool = False,
    **options: Any,
) -> Generated:
    """See `LoadedRun.generate`; with `several` the weights have a leading R, and so has all that comes back."""
    chosen = _method(experiment, method, options)
    prompt = sequences(prompt, experiment.task.input.size)
    require(whole(length) and 1 <= length <= LONGEST, "length", length, f"a whole number from 1 to {LONGEST}")
    number = isinstance(temperature, int | float | np.number) and not isinstance(temperature, bool)
    least, most = TEMPERATURES
    what = f"0, which is greedy, or a number from {least:g} to {most:g}"
    require(number and (temperature == 0 or least <= temperature <= most), "temperature", temperature, what)
    check_key(key)
    if temperature > 0:
        needs_key(key, "a token at a temperature above 0")
    setting = _setting(experiment, condition, prompt, length, temperature == 0)
    told = _told(experiment, condition, prompt, chosen.rows(prompt.shape[1], length), setting, valid, tokens)
    chosen, plan = chosen.planned(experiment, told, setting, len(prompt), key)
    check_lengths(experiment, told, setting.context)
    key = jax.random.key(0) if key is None else key  # greedy, and read by nothing
    run = _program(experiment, chosen, setting, several)
    with jax.default_matmul_precision("highest"):
        return run(weights, prompt, experiment.spread(told, len(prompt)), plan, key, jnp.float32(temperature))


def likelihood(
    experiment: Experiment,
    weights: dict[str, Tree],
    prompt: Int[Mapped, "B P"],
    answer: Int[Mapped, "B G"],
    key: Key[jax.Array, ""],
    draws: int = 128,
    condition: Condition | None = None,
    valid: Bool[Mapped, "B P"] | None = None,
    tokens: Tokens | None = None,
    several: bool = False,
) -> Float[jax.Array, "B"]:
    """See `LoadedRun.log_likelihood`."""
    if not isinstance(experiment.objective, Hiding):
        raise ConfigError(
            f"log_likelihood: the objective {experiment.config.objective} hides no answers; allowed: masked_denoising,"
            " masked_diffusion."
        )
    _method(experiment, None, {})
    words = experiment.task.input.size
    prompt, answer = sequences(prompt, words), sequences(answer, words, "answer")
    require(whole(draws) and 1 <= draws <= MOST_DRAWS, "draws", draws, f"a whole number from 1 to {MOST_DRAWS}")
    check_key(needs_key(key, "what is hidden"))
    require(len(answer) == len(prompt), "answer", answer.shape, f"{len(prompt)} answers, one a prompt")
    setting = _setting(experiment, condition, prompt, answer.shape[1], True)
    told = _told(experiment, condition, prompt, prompt.shape[1] + answer.shape[1], setting, valid, tokens)
    Diffusion().planned(experiment, told, setting, len(prompt), key)
    check_lengths(experiment, told, setting.context)
    run = _likelihood_program(experiment, setting, draws if answer.shape[1] > 1 else 1, several)
    with jax.default_matmul_precision("highest"):
        return run(weights, jnp.concatenate([prompt, answer], axis=1), experiment.spread(told, len(prompt)), key)


def _method(experiment: Experiment, name: str | None, options: dict[str, Any]) -> Method:
    """The method that fits the objective, with these options."""
    task, objective = experiment.task, experiment.config.objective
    fits = next((method for kind, method in OF_OBJECTIVE if isinstance(experiment.objective, kind)), None)
    if fits is None or task.input != task.output:
        raise ConfigError(
            f"generate: the task reads {task.input.size} {task.input.kind} and the objective {objective} says"
            f" {task.output.size} {task.output.kind}; allowed: one vocabulary of tokens for both."
        )
    if name is not None and (not isinstance(name, str) or name not in METHODS):
        raise unknown("method", "method", name, METHODS)
    if name not in (None, fits.name):
        raise ConfigError(f"method: {name!r} is not what the objective {objective} trains; allowed: {fits.name!r}.")
    return construct(fits, {option: plain(value) for option, value in options.items()}, "generate", fits.name)


def _setting(
    experiment: Experiment, condition: Condition | None, prompt: jax.Array, length: int, greedy: bool
) -> Setting:
    """The context is the condition's, or the whole prompt where that is shorter and a model may read it so."""
    condition = condition or experiment.task.conditions()[0]
    context = experiment.task.context_length(condition)
    if experiment.architecture.first_row(context) == 0:
        context = min(context, prompt.shape[1])
    return Setting(prompt.shape[1], length, context, greedy, experiment.task.input.size)


def _told(
    experiment: Experiment,
    condition: Condition | None,
    prompt: jax.Array,
    rows: int,
    setting: Setting,
    valid: Bool[Mapped, "B P"] | None,
    tokens: Tokens | None,
) -> Tokens:
    """The tokens of all rows that are read, numpy, which the model can be told."""
    if tokens is not None and valid is not None:
        raise ConfigError("valid: tokens that are given tell of padding themselves; allowed: valid=None.")
    place = experiment.architecture.place(setting.context)
    if place is not None and place >= rows:
        raise ConfigError(
            f"prompt: with {setting.prompt} tokens, of which {setting.context} are the context, and length ="
            f" {setting.length} no row is read behind the one that {experiment.config.model.architecture} adds to the"
            " context; allowed: a longer prompt or length."
        )
    padded = None if valid is None else padding(valid, prompt.shape)
    told = layout(
        experiment, condition or experiment.task.conditions()[0], setting.context, rows, padded, tokens, len(prompt)
    )
    kept = np.flatnonzero((told.spare >= 0).reshape(-1, told.length).any(axis=0))
    if place is not None and len(kept) and kept.tolist() != [place]:
        raise ConfigError(
            f"prompt: its context ends at row {place}, and the tokens keep a position in front of row {kept[0]};"
            " allowed: prompts that hold the whole context."
        )
    check_tables(experiment, told, setting.context, setting.length)
    experiment.check_masks(told.told_context(setting.context), setting.context)
    return told


def _merged(experiment: Experiment, weights: dict[str, Tree]) -> Model:
    return nnx.merge(nnx.graphdef(experiment.abstract), weights["params"], weights["frozen"])


@functools.lru_cache(maxsize=16)
def _program(experiment: Experiment, method: Method, setting: Setting, several: bool) -> Callable[..., Generated]:
    """Compiled once for all prompts of a size."""

    def run(
        weights: dict[str, Tree], prompt: jax.Array, tokens: Tokens, plan: Tree, key: jax.Array, temperature: jax.Array
    ) -> Generated:
        return method.run(_merged(experiment, weights), setting, prompt, tokens, plan, key, temperature)

    return jax.jit(jax.vmap(run, in_axes=(0, *[None] * 5)) if several else run)


@functools.lru_cache(maxsize=16)
def _likelihood_program(experiment: Experiment, setting: Setting, draws: int, several: bool) -> Callable[..., Any]:
    def run(weights: dict[str, Tree], inputs: jax.Array, tokens: Tokens, key: jax.Array) -> jax.Array:
        unknown = jnp.broadcast_to(jnp.arange(inputs.shape[1]) >= setting.prompt, inputs.shape)
        predict = predictor(_merged(experiment, weights), tokens, setting.context, setting.mask_token)
        return log_likelihood(predict, inputs, unknown, key, draws)

    return jax.jit(jax.vmap(run, in_axes=(0, None, None, None)) if several else run)
