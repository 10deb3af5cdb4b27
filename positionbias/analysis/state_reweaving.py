"""State reweaving: what the model answers once the stream of one layer is woven into the stream of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.analysis.base import STREAM, Analysis, Axes, Labels, Subject, recorded, sites
from positionbias.analysis.segments import check_items, evidence_rows
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.models import edits
from positionbias.spec import member, require
from positionbias.tasks.base import Batch
from positionbias.tokens import of_both, own_and_shared

EMBEDDING = "embedding"
ROWS = ("evidence", "answer", "relevant")
WAYS = ("forward", "back")
TOLD = ("accuracy", "log_probability")


@member("analyses", "state_reweaving")
@dataclasses.dataclass(frozen=True)
class StateReweaving(Analysis):
    """Answers where the stream h behind one layer is woven into that behind another, in some rows.

    In the chosen rows h_to becomes (1 - w) h_to + w h_from, with w = `weight` and h_from of the run as it is. Above the
    diagonal of (from, to) an early state is brought up to a later layer; below it a late one is brought down to an
    earlier layer of a second run, which with w = 1 is back-patching (Biran et al. 2024, "Hopping Too Late", arXiv
    2406.12775). On the diagonal nothing changes.

    Reweaving is by Dillon et al. 2025 (arXiv 2502.02046): states of relevant tokens are captured in a layer and woven
    into later computation, so that long contexts are recalled. That paper gives no formula. Ours are: the weighted
    mean; the same row, so that a state stays where it was; and which rows. These are `rows`: all that some answer needs
    ("evidence"), those that "answer", or the "relevant" ones, as many as the first, by |x . d log p / d x| with the
    embedding x of a row and p that of the item's right answers (gradient times input, Shrikumar et al. 2017, arXiv
    1605.01713), of rows that do not answer while there are such.

    "accuracy" and "log_probability" (nats) are those of the right answers. Beside them, "_shuffled" has what h_from is
    in the same row of the next item, so that this item's state is told from any state, on the diagonal too; "_intact"
    is the model left alone. "restored" is the measure of the second paper, the share of wrong answers that some pair of
    layers makes right, of pairs forward and of pairs back; the best of many pairs is right at times by chance, which
    "restored_shuffled" tells. Both are 0 where no answer is wrong.
    """

    rows: Literal["evidence", "answer", "relevant"] = "evidence"
    weight: float = 1.0

    axes: ClassVar[Axes] = {
        **{f"{name}{of}": ("from_layer", "to_layer") for of in ("", "_shuffled") for name in TOLD},
        **{f"{name}_intact": () for name in TOLD},
        **dict.fromkeys(("restored", "restored_shuffled"), ("way",)),
    }
    shown = "accuracy"
    alike = (STREAM,)

    def __post_init__(self) -> None:
        require(self.rows in ROWS, "rows", self.rows, f"one of {', '.join(ROWS)}")
        require(0 < self.weight <= 1, "weight", self.weight, "a number above 0, up to 1")

    def reads(self) -> tuple[str, ...]:
        return (STREAM, EMBEDDING)

    def check(self, subject: Subject) -> None:
        check_items(subject)

    def labelled(self, subject: Subject, layers: Sequence[int]) -> Labels:
        return {**dict.fromkeys(("from_layer", "to_layer"), tuple(map(str, layers))), "way": WAYS}

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        names, count = sites(layers, STREAM), len(layers)
        batch = subject.batch(key)  # whose pieces may have a single item, so that the next one is of the whole
        own, _ = own_and_shared(batch.tokens)
        following = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), {"inputs": batch.inputs, "own": own})
        begin, end = (x.reshape(-1) for x in np.indices((count, count)))
        on_way = np.stack([begin < end, begin > end])  # [way, pairs]

        def one(piece: Batch, beside: dict[str, Any]) -> dict[str, jax.Array]:
            tokens = of_both(beside["own"], own_and_shared(piece.tokens)[1])
            held = recorded(subject, layers, STREAM, piece)  # [L, B, T, D]
            other = recorded(subject, layers, STREAM, piece._replace(inputs=beside["inputs"], tokens=tokens))
            chosen = chosen_rows(subject, piece, self.rows)

            def woven(source: Float[jax.Array, "L B T D"], pair: Int[jax.Array, "2"]) -> dict[str, jax.Array]:
                # As a difference, which is 0 to the bit between a layer and itself; no layer has the number -1.
                added = self.weight * (source[pair[0]] - held[pair[1]])
                edit = {name: edits.add(added, rows=chosen & (pair[1] == i)) for i, name in enumerate(names)}
                return subject.answers(subject.apply(piece, (), edit)[0], piece)

            pairs = jnp.concatenate([jnp.stack([begin, end], axis=1), jnp.array([[0, -1]])])
            found = jax.lax.map(lambda pair: woven(held, pair), pairs)  # [pairs, B, A] each
            shuffled = jax.lax.map(lambda pair: woven(other, pair), pairs[:-1])
            wrong = found["accuracy"][-1] < 0.5
            told = {f"{name}_intact": jnp.mean(found[name][-1]) for name in TOLD} | {"wrong": jnp.mean(wrong)}
            for of, x in (("", {name: x[:-1] for name, x in found.items()}), ("_shuffled", shuffled)):
                told |= {f"{name}{of}": jnp.mean(x[name], axis=(1, 2)).reshape(count, count) for name in TOLD}
                by_way = on_way[..., None, None] & (x["accuracy"] > 0.5)
                told[f"restored{of}"] = jnp.mean(wrong & jnp.any(by_way, axis=1), axis=(1, 2))
            return told

        found = subject.averaged(batch, one, beside=following)
        wrong = found.pop("wrong")
        shares = {
            f"restored{of}": found[f"restored{of}"] / jnp.where(wrong > 0, wrong, 1.0) for of in ("", "_shuffled")
        }
        return found | shares


def chosen_rows(subject: Subject, batch: Batch, which: str) -> Bool[jax.Array, "B T"]:
    """The rows of every item that get another layer's state; `which` is one of `ROWS`."""
    needed = jnp.any(evidence_rows(batch), axis=1)
    if which == "evidence":
        return needed
    answering = jnp.any(subject.run.answer_rows(batch)[..., None] == jnp.arange(needed.shape[-1]), axis=1)
    if which == "answer":
        return answering

    def right(embedded: jax.Array) -> jax.Array:
        outputs, _ = subject.apply(batch, (), {EMBEDDING: edits.replace(embedded)})
        return jnp.sum(subject.answers(outputs, batch)["log_probability"])

    embedded = subject.apply(batch, [EMBEDDING])[1][EMBEDDING]
    relevance = jnp.abs(jnp.sum(embedded * jax.grad(right)(embedded), axis=-1))
    order = jnp.argsort(jnp.where(answering, -1.0, relevance), axis=-1, descending=True)
    return jnp.argsort(order, axis=-1) < jnp.sum(needed, axis=-1, keepdims=True)
