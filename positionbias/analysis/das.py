"""Distributed alignment search: whether a few directions of the stream carry a variable of the task."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.alignment import Taught, judged, subspaces
from positionbias.analysis.base import STREAM, Axes, Subject, sites
from positionbias.arrays import Key
from positionbias.spec import member, require


@member("analyses", "das")
@dataclasses.dataclass(frozen=True)
class Das(Taught):
    """Interchange-intervention accuracy of `dimensions` directions that are learned to carry a variable, by layer.

    Geiger et al. 2024, "Finding Alignments Between Interpretable Causal Variables and Distributed Neural
    Representations" (arXiv 2303.02536): of a base x and a source s the stream behind a layer becomes
    x + B' B (s - x), with an orthonormal B that is trained on the frozen model to make it say what is right for the
    base with the source's value of the `variable`: `updates` steps of Adam, `batch` fresh pairs each, with a learning
    rate that falls from `rate` to 0. The variable is

    - "answer": the token that is the last answer, in the row that answers; the source is another item;
    - "evidence": whether a row is the one that holds the last answer. It and another row of its role in the same item,
      with another token, get each other's, so that the other token becomes right;
    - "condition": which of two conditions holds, the asked one or the first other with the same items, in the row that
      answers. Base and source are different items, each in either condition at random.

    "iia" is the share of fresh pairs that then say it, "changed" the same among those whose answer has to change, 0
    where none has. Beside it, always: "shuffled", the same search and judgement with labels of values that are drawn
    whatever the source holds (of "evidence", those of a third row); "random", as many directions at random; "whole",
    the whole stream interchanged; and "nothing", the base left alone, which is the chance of a variable of two values.
    The models before training are the other control: what can be taught to a map of random features is nothing that the
    model knows.
    """

    variable: str = "answer"
    dimensions: int = 8
    updates: int = 200
    batch: int = 32
    rate: float = 1e-2

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("iia", "changed", "shuffled", "random", "whole"), ("layer",)),
        "nothing": (),
    }
    shown = "iia"
    draws = True

    def __post_init__(self) -> None:
        require(self.dimensions >= 1, "dimensions", self.dimensions, "a whole number from 1 to model.width")
        super().__post_init__()

    def check(self, subject: Subject) -> None:
        super().check(subject)
        size = subject.run.config.model.width
        require(
            self.dimensions <= size, "dimensions", self.dimensions, f"a whole number from 1 to model.width = {size}"
        )

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        learned, asked = jax.random.split(key)
        names = sites(layers, STREAM)
        told = (subject, names, self.variable)
        found = subspaces(*told, self.dimensions, self._training(), learned, (False, True))
        shares = jnp.ones((len(names), self.dimensions))
        return judged(*told, (found[:, 0], shares), (found[:, 1], shares), asked)
