"""Grids of coloured objects, then the name of one of them: its colour is the answer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import LONGEST, Batch, Condition, Size, Task, letters, one_of
from positionbias.tasks.sampling import distinct
from positionbias.tokens import Tokens, rings, sequential

MOST_CELLS = 65536  # tokens that a cell may be
IMAGE_ROLE, QUESTION_ROLE = 1, 2  # 0 is nothing, so that masks may name a role that no token has


@member("tasks", "grid_recall")
@dataclasses.dataclass(frozen=True)
class GridRecall(Task):
    """Say in which colour an object stands in one of `frames` grids, read row by row, a token a cell.

    Accuracy by the asked cell is the check of concentric causal attention, which plants an object at every place of an
    image and asks for it (Xing et al. 2024, arXiv 2410.15926); several grids are the frames of a video, as in TC-LLaVA
    (Gao et al. 2024, arXiv 2409.03206). A cell's token is an object and its colour. All objects are distinct, colours
    are uniform and independent, and the last row names one of the objects, each equally likely.

    One sample of `grid_recall(frames=2, side=2, objects=9, colours=5)`:

        input    c1 a2 f4 g2 b4 h2 e3 i2 i?
        target   .  .  .  .  .  .  .  .  2

    The object is looked up by what it is: no order is needed, so that `order_free` is 1 where the cell and the question
    are seen, and what a model gets wrong at some places and not at others is a bias of position.

    What masks, assignments, schemes and operators read of a token: role 1 for cells (`modality_mutual(1, 2)`,
    `condition_causal(1)`, `multimodal_softmax(1)`), 2 for the question (`block_causal_with_summary(2)`); frame, from 1,
    and 0 for the question, which is in none; scale, the ring of a cell from 0 at the border, and the innermost for the
    question, which so sees all under `scale_causal`. Under `frame_causal` what is in no frame sees no frame, and the
    question only with `frame_causal | causal`.

    Segments are the frames, which may stand in any order; one that is moved keeps its number. Vocabulary: colours, then
    names of objects, then cells, object by object.
    """

    frames: int = 1
    side: int = 4
    objects: int = 64
    colours: int = 8

    movable = True
    query_axis = "question"
    evidence_axis = "cell, row by row"

    def __post_init__(self) -> None:
        require(self.frames >= 1, "frames", self.frames, "a whole number from 1")
        require(self.side >= 1, "side", self.side, "a whole number from 1")
        what = f"at most {LONGEST - 1}, for one more asks"
        require(self._cells < LONGEST, "frames * side ** 2", self._cells, what)
        most = MOST_CELLS // self._cells
        require(2 <= self.colours <= most, "colours", self.colours, f"a whole number from 2 to {most}")
        most = MOST_CELLS // self.colours
        what = f"a whole number from {self._cells}, one for each cell, to {most}, {MOST_CELLS} with their colours"
        require(self._cells <= self.objects <= most, "objects", self.objects, what)

    @property
    def _cells(self) -> int:
        """Of all frames."""
        return self.frames * self.side**2

    @property
    def _first_cell(self) -> int:
        return self.colours + self.objects

    # ---- static

    @property
    def input(self) -> Size:
        return Size("tokens", self._first_cell + self.objects * self.colours)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        return (Condition("train"),)

    def stretched(self, factor: int) -> GridRecall:
        cells = factor * self._cells
        what = f"a whole number from {cells}, one for each cell of {factor} times the frames, set before training"
        require(cells <= self.objects or cells >= LONGEST, "objects", self.objects, what)
        return dataclasses.replace(self, frames=factor * self.frames)

    def length(self, condition: Condition) -> int:
        return self._cells + 1

    def context_length(self, condition: Condition) -> int:
        return self._cells

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return np.array([self._cells])

    def tokens(self, condition: Condition) -> Tokens:
        frame = np.append(np.repeat(np.arange(1, self.frames + 1, dtype=np.int32), self.side**2), np.int32(0))
        ring = rings(self.side)
        scale = np.append(np.tile(ring, self.frames), ring.max())
        role = np.where(frame > 0, IMAGE_ROLE, QUESTION_ROLE).astype(np.int32)
        return sequential(len(frame), role=role, frame=frame, scale=scale, segment=frame)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        return {"query": np.ones(1), "evidence": np.full(self._cells, 1 / self._cells)}

    def word(self, token: int) -> str:
        if token < self.colours:
            return str(token)
        if token < self._first_cell:
            return f"{letters(token - self.colours)}?"
        number, colour = divmod(token - self._first_cell, self.colours)
        return f"{letters(number)}{colour}"

    # ---- sampled

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        object_key, colour_key, asked_key = jax.random.split(key, 3)
        shown = distinct(object_key, self._cells, self.objects)
        colours = jax.random.randint(colour_key, (self._cells,), 0, self.colours, jnp.int32)
        asked = jax.random.randint(asked_key, (1,), 0, self._cells, jnp.int32)

        length, zero = self._cells + 1, jnp.zeros(1, jnp.int32)
        query = zero + self._cells
        return Batch(
            inputs=jnp.append(self._first_cell + self.colours * shown + colours, self.colours + shown[asked]),
            targets=jnp.zeros(length, jnp.int32).at[query].set(colours[asked]),
            weights=jnp.zeros(length).at[query].set(1.0),
            tokens=self.tokens(condition),
            query=query,
            evidence=asked[:, None],
            order=zero,
            distance=query - asked,
            n_distractors=zero + self._cells - 1,
            source=zero - 1,
            query_slot=zero,
            evidence_slot=asked,
        )

    def after_move(self, example: Batch) -> Batch:
        return example._replace(evidence_slot=example.evidence[:, 0])

    # ---- judged

    def _read(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Colours of the cells i32[S], which cells are seen bool[S], whether the asked one, and the question, is."""
        row = visible[example.query[0]]
        number, colour = jnp.divmod(example.inputs[:-1] - self._first_cell, self.colours)
        seen = row[:-1]
        return colour, seen, jnp.any(seen & (number == example.inputs[-1] - self.colours)), row[-1]

    def _counts(self, colour: jax.Array, seen: jax.Array) -> Int[jax.Array, "V"]:
        """In how many of the cells that are seen each colour stands."""
        return jnp.zeros(self.colours, jnp.int32).at[colour].add(seen)

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact: certain where the asked cell is seen, else any colour; without the question, the likeliest of all."""
        colour, seen, found, told = self._read(example, visible)
        counts = jnp.max(self._counts(colour, seen)) + jnp.sum(~seen) / self.colours
        return jnp.where(told, jnp.where(found, 1.0, 1 / self.colours), counts / self._cells)[None]

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any colour; nearest: that of the last cell seen; order_free: that of the cell asked for,
        which a bag of the tokens tells as well, or without the question the one seen most often."""
        colour, seen, found, told = self._read(example, visible)
        answer, chance = example.targets[-1], jnp.full((), 1 / self.colours)
        last = jnp.max(jnp.where(seen, jnp.arange(self._cells), -1))
        counts = self._counts(colour, seen)
        most = one_of(counts == jnp.max(counts), jnp.arange(self.colours) == answer, chance)
        rules = {
            "chance": chance,
            "majority": chance,
            "nearest": jnp.where(last < 0, chance, colour[last] == answer),
            "order_free": jnp.where(told, jnp.where(found, 1.0, chance), most),
        }
        return {name: value.astype(jnp.float32)[None] for name, value in rules.items()}
