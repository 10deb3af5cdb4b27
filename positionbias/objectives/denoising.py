"""Objectives that hide inputs and have the model say what they were.

An answer that stands in an input (the task's `source`) is an input like others: hidden at random in training, and
always when it is asked for. An answer that stands in none is as good as hidden: the row that asks for it says it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int
from positionbias.objectives.next_token import SaysInputs, at_rows
from positionbias.spec import ConfigError, member, require
from positionbias.tasks.base import Batch, Condition, Size, Task

LEAST = 1e-3  # LLaDA's eps: the smallest probability of being hidden


class MaskToken(SaysInputs):
    """What hides inputs has a token of its own for it, behind the task's."""

    def input(self, size: Size) -> Size:
        return Size(size.kind, size.size + 1)


class Hiding(MaskToken):
    """Rows say the input that they hold."""

    tells = frozenset({"hidden"})

    def check(self, task: Task) -> None:
        super().check(task)
        for condition in task.conditions():
            holds, asks = task.leaks(condition), task.query_rows(condition)
            torn = [row for row in asks if holds[:, row].any() and not holds[row].any()]
            if torn:
                raise ConfigError(
                    f"objective: {self.spec_name!r} has a row say the input that it holds, but in condition"  # type: ignore[attr-defined]
                    f" {condition.name} of the task row {torn[0]} holds one answer and is asked for another, which"
                    " stands in no input; allowed: a task like 'reversal', or another objective."
                )

    def ask(self, batch: Batch, task: Task, condition: Condition) -> Batch:
        return hide(batch, at_rows(batch.source, batch.inputs.shape[-1]), task)

    def rows(self, batch: Batch) -> Int[jax.Array, "... A"]:
        return jnp.where(batch.source >= 0, batch.source, batch.query)

    def forbidden(self, task: Task, condition: Condition) -> Bool[np.ndarray, "T T"]:
        return np.zeros_like(super().forbidden(task, condition))  # what a row says is hidden from all


@member("objectives", "masked_denoising")
@dataclasses.dataclass(frozen=True)
class MaskedDenoising(Hiding):
    """Cross-entropy of inputs chosen with chance `rate`, as Devlin et al. 2018 (arXiv 1810.04805, section 3.1).

    Of those chosen, the share `other` is replaced by any token and `kept` is left as it is; the rest is hidden. Where
    answers are asked, all that stand in inputs are hidden at once.
    """

    rate: float = 0.15
    other: float = 0.1
    kept: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, "rate", self.rate, "a number above 0 and at most 1")
        for name in ("other", "kept"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")
        require(
            self.other + self.kept <= 1, "kept", self.kept, f"at most {1 - self.other:g} with other = {self.other:g}"
        )

    def prepare(self, key: jax.Array, batch: Batch, task: Task, condition: Condition) -> Batch:
        choose, how, which = jax.random.split(key, 3)
        chosen = jax.random.bernoulli(choose, self.rate, batch.inputs.shape) & may_hide(batch)
        part = jax.random.uniform(how, batch.inputs.shape)
        other = jax.random.randint(which, batch.inputs.shape, 0, task.input.size, batch.inputs.dtype)
        changed = hide(batch, chosen & (part >= self.other + self.kept), task)
        inputs = jnp.where(chosen & (part < self.other), other, changed.inputs)
        return said(batch, chosen, jnp.ones(()))._replace(inputs=inputs, tokens=changed.tokens)


@member("objectives", "masked_diffusion")
@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(Hiding):
    """Masked diffusion (LLaDA, Nie et al. 2025, arXiv 2502.09992): of each sequence, any share of the inputs is hidden.

    Every input of a sequence is hidden with chance p = (1 - 0.001) t + 0.001, t uniform on (0, 1); the loss is the
    cross-entropy of those hidden over p, divided by the length: in expectation a bound on the negative log-likelihood
    (equation 3). With `answers_only` prompts are never hidden and a sequence is divided by its number of answers (its
    fine-tuning, equation 5). Where answers are asked, all that stand in inputs are hidden at once.
    """

    answers_only: bool = False

    def prepare(self, key: jax.Array, batch: Batch, task: Task, condition: Condition) -> Batch:
        share_key, hide_key = jax.random.split(key)
        t = jax.random.uniform(share_key, (*batch.inputs.shape[:-1], 1))
        p = (1 - LEAST) * t + LEAST
        hidden = (jax.random.uniform(hide_key, batch.inputs.shape) < p) & self._may_hide(batch)
        changed = hide(batch, hidden, task)
        batch = said(batch, hidden, 1 / p)
        return batch._replace(
            inputs=changed.inputs, tokens=changed.tokens, weights=batch.weights / self._length(batch)[..., None]
        )

    @property
    def trains_context(self) -> bool:
        return not self.answers_only

    def total(self, batch: Batch) -> jax.Array:
        return jnp.asarray(float(np.prod(batch.weights.shape[:-1])))

    def _may_hide(self, batch: Batch) -> jax.Array:
        answers = at_rows(batch.source, batch.inputs.shape[-1])
        return may_hide(batch) & answers if self.answers_only else may_hide(batch)

    def _length(self, batch: Batch) -> Float[jax.Array, "..."]:
        """How many tokens of each sequence may be hidden, those included that stand in no input."""
        return jnp.sum(self._may_hide(batch) | always_said(batch), axis=-1)


@member("objectives", "prefix_lm_plus_denoising")
@dataclasses.dataclass(frozen=True)
class PrefixLMPlusDenoising(MaskToken):
    """JRT-RNN's loss (Arora et al. 2024, arXiv 2407.05483): next token behind the context, denoising within it.

    Inputs of the context are hidden with chance `rate`, always by the mask token, and their rows say what they were;
    the two mean losses are averaged with weights 1 and `weight`. Where answers are asked nothing is hidden.
    """

    rate: float = 0.15
    weight: float = 0.25

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, "rate", self.rate, "a number above 0 and at most 1")
        require(self.weight > 0, "weight", self.weight, "a number above 0")

    def check(self, task: Task) -> None:
        super().check(task)
        condition = task.conditions()[0]
        first = task.context_length(condition)
        if first == 0 or task.query_rows(condition).min() < first:
            raise ConfigError(
                f"objective: {self.spec_name!r} denoises the context and asks behind it, but the task asks from row"  # type: ignore[attr-defined]
                f" {task.query_rows(condition).min()} on and its context ends at {first}; allowed: a task that asks"
                " behind a context."
            )

    def prepare(self, key: jax.Array, batch: Batch, task: Task, condition: Condition) -> Batch:
        context = jnp.asarray(batch.tokens.index) < task.context_length(condition)
        chosen = jax.random.bernoulli(key, self.rate, batch.inputs.shape) & may_hide(batch) & context
        ahead = batch.weights * ~context
        weights = _mean(ahead) + self.weight * _mean(chosen.astype(jnp.float32))
        return batch._replace(
            inputs=hide(batch, chosen, task).inputs,
            targets=jnp.where(chosen, batch.inputs, batch.targets),
            weights=weights,
        )

    def total(self, batch: Batch) -> jax.Array:
        return jnp.asarray(1 + self.weight)


def _mean(weights: jax.Array) -> jax.Array:
    return weights / jnp.maximum(jnp.sum(weights), 1e-9)


def always_said(batch: Batch) -> Bool[jax.Array, "... T"]:
    """Rows whose answer stands in no input, which say it whatever is hidden."""
    return at_rows(jnp.where(batch.source < 0, batch.query, -1), batch.inputs.shape[-1])


def may_hide(batch: Batch) -> Bool[jax.Array, "... T"]:
    """Inputs that may be hidden: no padding, and no row that has something else to say."""
    return jnp.asarray(batch.tokens.valid) & ~always_said(batch)


def hide(batch: Batch, hidden: Bool[jax.Array, "... T"], task: Task) -> Batch:
    """The batch with these inputs replaced by the mask token, which comes behind the task's vocabulary."""
    tokens = batch.tokens._replace(hidden=hidden.astype(jnp.int32))
    return batch._replace(inputs=jnp.where(hidden, task.input.size, batch.inputs), tokens=tokens)


def said(batch: Batch, chosen: Bool[jax.Array, "... T"], weight: jax.Array) -> Batch:
    """The batch whose `chosen` rows say their inputs, weighing `weight`, beside answers that stand in no input."""
    return batch._replace(
        targets=jnp.where(chosen, batch.inputs, batch.targets),
        weights=jnp.where(chosen, weight, always_said(batch).astype(jnp.float32)),
    )
