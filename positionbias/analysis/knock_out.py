"""Attention knock-out: what an answer loses where its row may no longer attend to rows of one kind."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import PATTERN, Analysis, Axes, Labels, Subject, last_rows, recorded, sites
from positionbias.arrays import Bool, Float, Key
from positionbias.models import edits
from positionbias.models.sites import Edits
from positionbias.spec import member, require
from positionbias.tasks.base import Batch

KINDS = ("evidence", "self", "other")
FEW = KINDS[:2]  # those that there can be as many others of
DRAWS = 8  # of others
MOST = 1000


@member("analyses", "knock_out")
@dataclasses.dataclass(frozen=True)
class KnockOut(Analysis):
    """Change of the answer where the answering row attends no more to evidence, to itself, or to all other rows.

    Geva et al. 2023 (arXiv 2304.14767): in `window` layers from each one on (fewer at the end), the weights of the row
    of the last answer on columns of a kind are taken out for all heads, and those left divided by their sum, as if the
    columns had been masked before the softmax; without `renormalise` they stay as they are. A row that is left none
    weighs nothing. "log_probability" (nats) and "accuracy" are changes of the answer against the model as it is,
    "everywhere_*" those where it is done in all layers. "controls_*" are of as many other columns that the row sees, or
    all there are, at random, the mean over eight draws: evidence that is read costs more than these. "seen" is how many
    columns of each kind the row sees.
    """

    window: int = 1
    renormalise: bool = True

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("log_probability", "accuracy"), ("layer", "kind")),
        **dict.fromkeys(("controls_log_probability", "controls_accuracy"), ("layer", "few")),
        **dict.fromkeys(("everywhere_log_probability", "everywhere_accuracy"), ("kind",)),
        **dict.fromkeys(("everywhere_controls_log_probability", "everywhere_controls_accuracy"), ("few",)),
        "seen": ("layer", "kind"),
    }
    shown = "log_probability"
    labels: ClassVar[Labels] = {"kind": KINDS, "few": FEW}

    def __post_init__(self) -> None:
        require(1 <= self.window <= MOST, "window", self.window, f"a whole number from 1 to {MOST}")

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        found, drawn = jax.random.split(key)
        batch, length = subject.batch(found), subject.run.task.length(subject.condition)
        at, count = jnp.arange(len(layers)), len(layers)
        windows = (at >= at[:, None]) & (at < at[:, None] + self.window)  # [first, layer]
        windows = jnp.concatenate([windows, jnp.ones((1, count), bool)])
        draws = jax.random.uniform(drawn, (len(batch.query), DRAWS, length))

        def one(piece: Batch, order: Float[jax.Array, "B draws T"]) -> dict[str, jax.Array]:
            rows, each, index = last_rows(subject, piece), jnp.arange(len(piece.query)), jnp.arange(length)
            pattern = recorded(subject, layers, PATTERN, piece)[:, each, :, rows]  # [B, L, N, T]
            sees = jnp.moveaxis(jnp.any(pattern != 0, axis=2), 1, 0)  # [L, B, T]
            own = index == rows[:, None]
            evidence = jnp.any(index == piece.evidence[:, -1, :, None], axis=1) & ~own
            kinds = jnp.stack([evidence, own, ~evidence & ~own])[:, None] & sees  # [kind, L, B, T]

            def result(edit: Edits | None = None) -> dict[str, jax.Array]:
                answers = subject.answers(subject.apply(piece, (), edit)[0], piece)
                return {name: jnp.mean(x[:, -1]) for name, x in answers.items()}

            def without(columns: Bool[jax.Array, "L B T"]) -> dict[str, jax.Array]:
                gone = own[:, :, None] & columns[:, :, None]  # [L, B, T, T]
                cuts = [edits.restrict(~gone[i], renormalise=self.renormalise) for i in range(count)]
                return result(dict(zip(sites(layers, PATTERN), cuts, strict=True)))

            def of_window(window: Bool[jax.Array, "L"]) -> dict[str, jax.Array]:
                return jax.lax.map(lambda columns: without(columns & window[:, None, None]), asked)

            asked = jnp.concatenate([kinds, *(instead(kinds[i], kinds[2], order) for i in range(len(FEW)))])
            plain, told = result(), {"seen": jnp.mean(jnp.sum(kinds, axis=-1), axis=-1).T}
            for name, x in jax.lax.map(of_window, windows).items():  # [first, and all, asked]
                change = x - plain[name]
                by_kind, controls = change[:, : len(KINDS)], change[:, len(KINDS) :]
                controls = jnp.mean(controls.reshape(-1, len(FEW), DRAWS), axis=-1)
                told |= {name: by_kind[:-1], f"everywhere_{name}": by_kind[-1]}
                told |= {f"controls_{name}": controls[:-1], f"everywhere_controls_{name}": controls[-1]}
            return told

        measured: dict[str, jax.Array] = subject.averaged(batch, one, beside=draws)
        return measured


def instead(
    some: Bool[jax.Array, "L B T"], others: Bool[jax.Array, "L B T"], order: Float[jax.Array, "B draws T"]
) -> Bool[jax.Array, "draws L B T"]:
    """As many of the others as there are of some, or all, in every draw: the first in an order of each item's own."""
    place = jnp.argsort(jnp.argsort(jnp.where(others[:, :, None], order, 2.0), axis=-1), axis=-1)  # [L, B, draws, T]
    return jnp.moveaxis(others[:, :, None] & (place < jnp.sum(some, axis=-1)[..., None, None]), 2, 0)
