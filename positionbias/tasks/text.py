"""Real text: say every next byte of a stored corpus."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import ConfigError, member, require
from positionbias.tasks import corpora
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task

BYTES = 256
COUNTED = 2**24  # bytes from the start of the training text that simple rules know
SHOWN = {corpora.END: "∎", ord("\n"): "⏎", ord(" "): "␣"}


@member("tasks", "text")
@dataclasses.dataclass(frozen=True)
class Text(Task):
    """Say every next byte of real text; the measure is the loss by position: what more context is worth.

    A sequence is a window of so many bytes that begins anywhere in the corpus, with equal chance; documents stand one
    after another, each ended by byte 0. `dataset` is a TFDS dataset whose `feature` is text, read by
    `tfds.data_source` from `data_dir` (None: where TFDS keeps its own, fetched if the network lets it). "plays" comes
    with the package: scenes of six plays by William Shakespeare, in the public domain, every tenth scene in "test".
    `train` and `test` are splits, or parts of them such as 'train[:10%]', and the two conditions.

    One sample of `text(window=24)`:

        input    m ⏎ n a m e ␣ h i s ␣ n a m e , ␣ a n d ␣ t e l
        target   ⏎ n a m e ␣ h i s ␣ n a m e , ␣ a n d ␣ t e l l

    No ideal reader of text is known, so the ceiling is nan; nor is it known which bytes an answer needs, so that only
    the byte of its own row is named. The loss is in nats a byte, beside that of the training text's frequencies of
    bytes (unigram) and of pairs (bigram). Needs the extra `data`. The corpus lies on the device whole: a batch is a
    function of the seed and the step alone, as in any task.
    """

    dataset: str = "plays"
    window: int = 128
    data_dir: str | None = None
    feature: str = "text"
    train: str = "train"
    test: str = "test"

    by_loss = True
    query_axis = "position in the window"
    evidence_axis = "the byte of the row itself"

    def __post_init__(self) -> None:
        require(1 <= self.window <= LONGEST, "window", self.window, f"a whole number from 1 to {LONGEST}")
        for name in ("dataset", "feature", "train", "test"):
            require(getattr(self, name) != "", name, getattr(self, name), "a name")

    # ---- static

    @property
    def input(self) -> Size:
        return Size("tokens", BYTES)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        return Condition("train"), Condition("test")

    def stretched(self, factor: int) -> Text:
        return dataclasses.replace(self, window=factor * self.window)

    def length(self, condition: Condition) -> int:
        return self.window

    def context_length(self, condition: Condition) -> int:
        return 0

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.arange(self.window)

    def leaks(self, condition: Condition) -> Bool[np.ndarray, "T T"]:
        return np.eye(self.window, k=1, dtype=bool)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        return {"query": np.full(self.window, 1 / self.window), "evidence": np.ones(1)}

    def word(self, token: int) -> str:
        return SHOWN.get(token) or (chr(token) if 33 <= token <= 126 else f"\\x{token:02x}")

    # ---- sampled

    def corpus(self) -> Mapping[str, Int[np.ndarray, "N"]]:
        """The bytes of each condition, u8[N]."""
        found = {}
        for name in ("train", "test"):
            split = getattr(self, name)
            found[name] = corpora.read(self.dataset, self.data_dir, self.feature, split)
            if len(found[name]) <= self.window:
                raise ConfigError(
                    f"task: window = {self.window} is not allowed; allowed: less than the {len(found[name])} bytes of"
                    f" split {split!r} of {self.dataset}."
                )
        return found

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        text = world[condition.name]
        start = jax.random.randint(key, (), 0, len(text) - self.window, jnp.int32)
        piece = jax.lax.dynamic_slice(text, (start,), (self.window + 1,)).astype(jnp.int32)
        rows = jnp.arange(self.window, dtype=jnp.int32)
        return Batch(
            inputs=piece[:-1],
            targets=piece[1:],
            weights=jnp.ones(self.window),
            tokens=self.tokens(condition),
            query=rows,
            evidence=rows[:, None],
            order=jnp.zeros_like(rows),
            distance=jnp.zeros_like(rows),
            n_distractors=jnp.zeros_like(rows),
            source=jnp.where(rows + 1 < self.window, rows + 1, -1),
            query_slot=rows,
            evidence_slot=jnp.zeros_like(rows),
        )

    # ---- judged

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        return jnp.full(self.window, jnp.nan)

    def _rules(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Per answer, the probabilities of every byte by frequency, and by frequency after the row's own byte."""
        alone, after = map(jnp.asarray, _frequencies(self.dataset, self.data_dir, self.feature, self.train))
        single = jnp.broadcast_to(alone, (self.window, BYTES))
        own = visible[example.query, example.query][:, None]
        return single, jnp.where(own, after[example.inputs[example.query]], single)

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """order_free and majority: the most frequent byte (the best guess from a bag of bytes is not known); nearest:
        the most frequent one after the row's own byte."""
        target = example.targets[example.query]
        single, after = ((jnp.argmax(rule, axis=-1) == target) * 1.0 for rule in self._rules(example, visible))
        chance = jnp.full(self.window, 1 / BYTES)
        return {"chance": chance, "majority": single, "nearest": after, "order_free": single}

    def losses(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        target = example.targets[example.query][:, None]
        single, after = (
            -jnp.log(jnp.take_along_axis(rule, target, axis=-1)[:, 0]) for rule in self._rules(example, visible)
        )
        return {"unigram": single, "bigram": after}


@functools.cache
def _frequencies(
    dataset: str, data_dir: str | None, feature: str, split: str
) -> tuple[Float[np.ndarray, "V"], Float[np.ndarray, "V V"]]:
    """Of every byte b in the training text, alone f32[256] and after byte a f32[256, 256], each counted once more.

    That is Laplace's rule, which leaves nothing impossible.
    """
    text = corpora.read(dataset, data_dir, feature, split)[:COUNTED].astype(np.int32)
    pairs = np.bincount(BYTES * text[:-1] + text[1:], minlength=BYTES**2).reshape(BYTES, BYTES)
    counts = pairs.sum(axis=0) + 1, pairs + 1
    alone, after = (count / count.sum(axis=-1, keepdims=True) for count in counts)
    return alone.astype(np.float32), after.astype(np.float32)
