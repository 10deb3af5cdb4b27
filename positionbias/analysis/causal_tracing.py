"""Causal tracing: which activations bring the answer back in a run whose evidence is drowned in noise."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Labels, Subject, sites
from positionbias.arrays import Key
from positionbias.models import edits
from positionbias.spec import member, require
from positionbias.tasks.base import Batch

SITES = {"stream": STREAM, "attention": "layers.*.attention.output", "mlp": "layers.*.mlp.output"}
PLACES = ("evidence", "context", "after", "answer", "random")


@member("analyses", "causal_tracing")
@dataclasses.dataclass(frozen=True)
class CausalTracing(Analysis):
    """Probability of the answer that a clean activation brings back in a noised run, by site, layer and kind of token.

    Meng et al. 2022 (arXiv 2202.05262, section 2.1; Vig et al. 2020, arXiv 2004.12265, for mediation): the embeddings
    of the evidence get Gaussian noise of `noise` standard deviations of all embeddings of the batch. The total effect
    is p clean - p noised, and a mediator's indirect effect p with its clean value - p noised, p being the probability
    of the right answers of an item, their mean. Mediators are the "stream" behind a layer, and what its "attention" and
    its "mlp" add, 0 for a layer without one, in all rows of a kind: "evidence"; "context", rows before the last of the
    evidence; "after", between that and the answers; rows that "answer"; and, to compare with, one "random" row that is
    neither evidence nor answer.
    """

    noise: float = 3.0

    axes: ClassVar[Axes] = {
        **dict.fromkeys(SITES, ("layer", "place")),
        **dict.fromkeys(("total", "clean", "noised"), ()),
    }
    shown = "stream"
    labels: ClassVar[Labels] = {"place": PLACES}
    draws = True

    def __post_init__(self) -> None:
        require(0 < self.noise <= 1000, "noise", self.noise, "a number above 0, up to 1000")

    def reads(self) -> tuple[str, ...]:
        return (STREAM,)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        length, count = subject.run.task.length(subject.condition), len(layers)

        def one(batch: Batch, key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
            loud, picked = jax.random.split(key)
            _, clean = subject.apply(batch, ["embedding", "layers.*"])
            spread = self.noise * jnp.std(clean["embedding"])
            added = spread * jax.random.normal(loud, clean["embedding"].shape)
            noised = {"embedding": edits.add(added, rows=batch.evidence.reshape(len(batch.query), -1))}

            def right(edit: dict[str, edits.Edit]) -> jax.Array:
                outputs, _ = subject.apply(batch, (), edit)
                return jnp.mean(jnp.exp(subject.answers(outputs, batch)["log_probability"]))

            place = _places(subject, batch, length, picked)
            found = {"clean": right({}), "noised": right(noised)}
            for kind, site in SITES.items():
                names = sites(layers, site)

                def restored(row: jax.Array, names: list[str] = names) -> jax.Array:
                    there = {
                        name: edits.replace(clean[name], rows=row[i]) for i, name in enumerate(names) if name in clean
                    }
                    return right(noised | there)

                chosen = (
                    jnp.eye(count, dtype=bool)[:, None, :, None, None] & place[None, :, None]
                )  # [l, place, L, B, T]
                effects = jax.lax.map(restored, chosen.reshape(-1, *chosen.shape[2:]))
                found[kind] = effects.reshape(count, len(PLACES)) - found["noised"]
            return found | {"total": found["clean"] - found["noised"]}

        drawn, own = jax.random.split(key)
        return subject.averaged(subject.batch(drawn), one, own)


def _places(subject: Subject, batch: Batch, length: int, key: Key[jax.Array, ""]) -> jax.Array:
    """Rows of each of the kinds, [place, B, T]."""
    index = jnp.arange(length)
    told = [batch.evidence.reshape(len(batch.query), -1), subject.run.answer_rows(batch)]
    evidence, answer = (jnp.any(rows[..., None] == index, axis=1) for rows in told)
    neither = ~evidence & ~answer
    before = index < jnp.max(told[0], axis=1)[:, None]
    draw = jnp.where(neither, jax.random.uniform(key, neither.shape), -1.0)
    random = neither & (index == jnp.argmax(draw, axis=1)[:, None])
    return jnp.stack([evidence & ~answer, neither & before, neither & ~before, answer, random])
