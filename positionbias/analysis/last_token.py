"""Last token: how long rows can wait for each other, and in how few layers the answer then gets all that it needs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import PATTERN, STREAM, Analysis, Axes, Subject, recorded, sites
from positionbias.arrays import Bool, Float, Int, Key
from positionbias.models import edits
from positionbias.spec import member, require
from positionbias.tasks.base import Batch

MOST = 100_000


def of_like_tokens(
    inputs: Int[jax.Array, "B T"], others: Int[jax.Array, "C T"], streams: Float[jax.Array, "L C T D"]
) -> tuple[Float[jax.Array, "L B T D"], Float[jax.Array, "B T"]]:
    """Sums over other items of their rows that hold the same token at the same position, and how many there are."""
    same = (inputs[:, None] == others).astype(jnp.float32)  # [B, C, T]
    return jnp.einsum("BCT,LCTD->LBTD", same, streams, precision="highest"), jnp.sum(same, axis=1)


@member("analyses", "last_token")
@dataclasses.dataclass(frozen=True)
class LastToken(Analysis):
    """Whether rows can wait before they read each other, and rows that answer read them in few layers (All for One).

    Mamidanna et al. 2025 (arXiv 2509.09650). Context-aware mean ablation: the stream behind the first w layers is
    replaced, in every row, by its mean over `references` fresh items that hold the same token at the same position:
    what of other tokens has come there is averaged out. Where no such item is found, by the mean over all of them, and
    "matched" is the share of rows where some are. Attention-based peeking: in the t layers that follow, rows that
    answer attend as they do and all others to themselves alone, and behind these all rows to themselves alone (the
    paper's also to a beginning token, which our sequences have none of).

    "waiting" is by w the share of the answers that the model gets right which stay the same where the stream alone is
    replaced, all later layers as they are; "peeking" by w and t where attention is cut too: without layers to
    transfer, t = 0, it is what a row's own token tells, the control. "wait" is the largest w that keeps `kept` of the
    answers, "transfer" the smallest t that does behind it, one more than there are layers where none does. "accuracy"
    is the model's own.
    """

    references: int = 1024
    kept: float = 0.9

    axes: ClassVar[Axes] = {
        "waiting": ("waits",),
        "peeking": ("waits", "transfers"),
        **dict.fromkeys(("wait", "transfer", "matched", "accuracy"), ()),
    }
    shown = "waiting"
    alike = (STREAM,)
    whole = True

    def __post_init__(self) -> None:
        require(1 <= self.references <= MOST, "references", self.references, f"a whole number from 1 to {MOST}")
        require(0 < self.kept <= 1, "kept", self.kept, "a number above 0, up to 1")

    def reads(self) -> tuple[str, ...]:
        return (PATTERN, STREAM)

    def check(self, subject: Subject) -> None:
        subject.require_tokens("a task of tokens, as rows of the same one are averaged", read=True, said=True)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        asked, drawn = jax.random.split(key)
        batch, many = subject.batch(asked), len(layers)
        means, matched = self._means(subject, layers, batch, drawn)

        def one(piece: Batch, mean: Float[jax.Array, "B L T D"]) -> dict[str, jax.Array]:
            outputs, _ = subject.apply(piece)
            rows = subject.run.answer_rows(piece)
            said, right = subject.said(outputs, piece), subject.answers(outputs, piece)["accuracy"]
            index = jnp.arange(piece.weights.shape[-1])
            own = index[:, None] == index
            answers = jnp.any(rows[..., None] == index, axis=1)[..., None]  # [B, T, 1]

            def same(wait: jax.Array, transfer: jax.Array, cut: jax.Array) -> Float[jax.Array, ""]:
                """Answers that are right and stay so, of those of an item."""
                change: dict[str, edits.Edit] = {}
                for i, name in enumerate(sites(layers, STREAM)):
                    chosen = jnp.broadcast_to(wait == i + 1, index.shape)
                    change[name] = edits.replace(mean[:, i], rows=chosen)
                for i, name in enumerate(sites(layers, PATTERN)):
                    reads = answers & (i < wait + transfer)
                    allowed: Bool[jax.Array, "B T T"] = own | reads | ~cut | (i < wait)
                    change[name] = edits.restrict(jnp.broadcast_to(allowed, (len(rows), *own.shape)))
                got = subject.said(subject.apply(piece, (), change)[0], piece)
                return jnp.mean(right * (got == said))

            waits = jnp.arange(many + 1)
            pairs = jnp.stack(jnp.meshgrid(waits, waits, indexing="ij"), axis=-1).reshape(-1, 2)
            return {
                "waiting": jax.lax.map(lambda wait: same(wait, jnp.array(0), jnp.array(False)), waits),
                "peeking": jax.lax.map(lambda pair: same(pair[0], pair[1], jnp.array(True)), pairs),
                "accuracy": jnp.mean(right),
            }

        found = subject.averaged(batch, one, beside=means)
        right = jnp.where(found["accuracy"] > 0, found["accuracy"], 1.0)
        waiting, peeking = found["waiting"] / right, found["peeking"].reshape(many + 1, many + 1) / right
        wait = jnp.max(jnp.where(waiting >= self.kept, jnp.arange(many + 1), 0))
        enough = peeking[wait] >= self.kept
        transfer = jnp.where(jnp.any(enough), jnp.argmax(enough), many + 1)
        told = {"waiting": waiting, "peeking": peeking, "matched": matched, "accuracy": found["accuracy"]}
        return told | {"wait": wait.astype(jnp.float32), "transfer": transfer.astype(jnp.float32)}

    def _means(
        self, subject: Subject, layers: list[int], batch: Batch, key: Key[jax.Array, ""]
    ) -> tuple[Float[jax.Array, "B L T D"], Float[jax.Array, ""]]:
        """The mean stream behind every layer of other items' rows with the same token, and the share that has some."""

        def one(piece: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            streams = recorded(subject, layers, STREAM, piece)
            sums, count = of_like_tokens(batch.inputs, piece.inputs, streams)
            return sums / len(piece.inputs), count / len(piece.inputs), jnp.mean(streams, axis=1)

        sums, count, every = subject.averaged(subject.batch(key, self.references), one)
        some = (count > 0)[..., None]
        means = jnp.where(some, sums / jnp.where(some, count[..., None], 1.0), every[:, None])
        return jnp.moveaxis(means, 0, 1), jnp.mean(count > 0)
