"""Logit lens: what the model would answer if it stopped behind each layer, and where it settles on its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Subject, recorded, sites
from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch


def read_out(
    subject: Subject, layers: list[int], batch: Batch, function: Callable[[Float[jax.Array, "B T V"]], Tree]
) -> Tree:
    """What `function` makes of the outputs as they are if the model stops behind each layer, with a leading L."""
    last = sites(layers, STREAM)[-1]

    def read(stream: jax.Array) -> Tree:
        outputs, _ = subject.apply(batch, (), {last: edits.replace(stream)})
        return function(outputs)

    return jax.lax.map(read, recorded(subject, layers, STREAM, batch))


def settled(agrees: Bool[jax.Array, "L ..."]) -> Int[jax.Array, "..."]:
    """The first layer from which on all agree with the last one, which does with itself."""
    stays = jnp.cumprod(jnp.flip(agrees.astype(jnp.int32), axis=0), axis=0)
    return len(agrees) - jnp.sum(stays, axis=0)


@member("analyses", "logit_lens")
@dataclasses.dataclass(frozen=True)
class LogitLens(Analysis):
    """The stream behind every layer, read out as the last one is, by the last norm and the readout.

    nostalgebraist (2020), "interpreting GPT: the logit lens". "accuracy" and "log_probability" (nats) are those of the
    right answer, "agrees" the share of answers that are what the whole model says. "commitment" is the mean number of
    layers after which an answer is the final one and stays so: all of them where only the last layer brings it.
    """

    axes: ClassVar[Axes] = {
        "accuracy": ("layer",),
        "log_probability": ("layer",),
        "agrees": ("layer",),
        "commitment": (),
    }
    shown = "accuracy"
    alike = (STREAM,)
    whole = True
    any_rows = True

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def check(self, subject: Subject) -> None:
        subject.require_tokens("a task that answers by tokens", said=True)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> dict[str, jax.Array]:
            def read(outputs: jax.Array) -> dict[str, jax.Array]:
                return {**subject.answers(outputs, batch), "said": subject.said(outputs, batch)}

            found = read_out(subject, layers, batch, read)  # [L, B, A] each
            agrees = found["said"] == found["said"][-1]
            told = {name: jnp.mean(found[name], axis=(1, 2)) for name in ("accuracy", "log_probability")}
            commitment = jnp.mean(1 + settled(agrees))
            return {**told, "agrees": jnp.mean(agrees, axis=(1, 2)), "commitment": commitment}

        return subject.averaged(subject.batch(key), one)
