"""Logit lens: what the model would answer if it stopped behind each layer, and where it settles on its answer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Subject, recorded, sites
from positionbias.arrays import Key
from positionbias.models import edits
from positionbias.spec import member, require
from positionbias.tasks.base import Batch


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
    whole = True
    any_rows = True

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def check(self, subject: Subject) -> None:
        kind = subject.run.experiment.objective.targets
        require(kind == "tokens", "task", subject.run.config.task, "a task that answers by tokens")

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        last = sites(layers, STREAM)[-1]

        def one(batch: Batch) -> dict[str, jax.Array]:
            rows, each = subject.run.answer_rows(batch), jnp.arange(len(batch.query))[:, None]

            def read(stream: jax.Array) -> dict[str, jax.Array]:
                outputs, _ = subject.apply(batch, (), {last: edits.replace(stream)})
                told = subject.answers(outputs, batch)
                return {**told, "said": subject.run.experiment.objective.said(outputs[each, rows])}

            found = jax.lax.map(read, recorded(subject, layers, STREAM, batch))  # [L, B, A] each
            agrees = (found["said"] == found["said"][-1]).astype(jnp.float32)
            stays = jnp.flip(jnp.cumprod(jnp.flip(agrees, axis=0), axis=0), axis=0)
            told = {name: jnp.mean(found[name], axis=(1, 2)) for name in ("accuracy", "log_probability")}
            settled = 1 + len(layers) - jnp.sum(stays, axis=0)
            return {**told, "agrees": jnp.mean(agrees, axis=(1, 2)), "commitment": jnp.mean(settled)}

        return subject.averaged(subject.batch(key), one)
