"""The architecture protocol: how layers are stacked, and which inputs each row can depend on."""

from __future__ import annotations

from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from positionbias.arrays import Bool, Float, Int, Key, Mapped, Shaped, Tree
from positionbias.masks.base import Mask
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Sites
from positionbias.operators.asked import some_rows
from positionbias.operators.base import Operator
from positionbias.tokens import Tokens


class Model(nnx.Module):
    """A network: thin, stateless in the forward pass."""

    def __call__(
        self,
        inputs: Shaped[jax.Array, "B T *Din"],
        tokens: Tokens,
        context_length: int,
        site: Sites,
        rows: Int[np.ndarray, "Q"] | None = None,
    ) -> Float[jax.Array, "B T V"]:
        """Outputs of every row, or of `rows` alone, float32; rows that do not answer in this architecture are zero."""
        told = inputs, tokens.told_context(context_length), context_length, site
        return self.forward(*told) if rows is None else self.of_rows(*told, rows)

    def forward(
        self, inputs: Shaped[jax.Array, "B T *Din"], tokens: Tokens, context_length: int, site: Sites
    ) -> Float[jax.Array, "B T V"]:
        """The call, with tokens that tell their context."""
        raise NotImplementedError

    def of_rows(
        self,
        inputs: Shaped[jax.Array, "B T *Din"],
        tokens: Tokens,
        context_length: int,
        site: Sites,
        rows: Int[np.ndarray, "Q"],
    ) -> Float[jax.Array, "B Q V"]:
        """`forward` of some rows; where they are few, an architecture may spare itself what the others cost."""
        return some_rows(self.forward(inputs, tokens, context_length, site), rows)

    def step(
        self,
        inputs: Int[jax.Array, "B T"],
        rows: Int[jax.Array, "B T"],
        tokens: Tokens,
        context_length: int,
        kept: Tree,
    ) -> tuple[Float[jax.Array, "B T V"], Tree]:
        """Outputs of some `rows` of a sequence, and `kept` with what later rows read of them (`Architecture.steps`).

        `tokens` [B, S] are those of the whole sequence and tell their context. `kept` is None in the first call, whose
        rows are 0, 1, ... and hold the context; of these, outputs are of those that answer. Later ones are in any order
        in which no row comes before one that it may see.
        """
        raise NotImplementedError


class Architecture:
    """How layers are stacked."""

    axis = "architectures"
    steps: ClassVar[bool] = False  # whether its models have a `step`
    spares: ClassVar[int] = 0  # the last so many of its attentions are those of `of_rows` alone, where these are asked

    def check(self, blueprint: Blueprint) -> None:
        """Raise ConfigError where the config does not fit this architecture."""

    def create(self, blueprint: Blueprint, noise: Noise) -> Model:
        """The model with fresh parameters."""
        raise NotImplementedError

    def place(self, context_length: int) -> int | None:
        """Where a row that it adds to the sequence stands, with a position of its own; None if it adds none."""
        return None

    def attentions(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int
    ) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
        """Every attention of the model: its name, operator, mask, and the tokens of its queries and keys.

        Their indices are those of the S rows that the layers read: T, and what the architecture adds.
        """
        raise NotImplementedError

    def mask_field(self, name: str) -> str | None:
        """The config field that the mask of the attention `name` is told in; None where the architecture fixes it."""
        return "model.mask"

    def held(self, name: str, tokens: Tokens, context_length: int) -> Int[np.ndarray, "S"]:
        """Which input each row `tokens` of the attention `name` stands for; -1 where for none, as a row added."""
        return np.asarray(tokens.index)

    def outside(self, tokens: Tokens, context_length: int) -> Bool[np.ndarray, "S S"]:
        """Which of the S rows depend on which by other ways than an attention among them."""
        size = tokens.length + (self.place(context_length) is not None)
        return np.zeros((size, size), bool)

    def first_row(self, context_length: int) -> int:
        """The first row that gives outputs; a task that asks before it is refused."""
        return 0

    def reach(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int, inputs: int | None = None
    ) -> Bool[Mapped, "T J"]:
        """Which inputs j row i can depend on: `visible` of every layer composed by `masks.base.attended`.

        J is T, or where told `inputs`, of which the last so many are asked about.

        `tokens` are [T] each, numpy or, where every example has its own, jax arrays: array operators only.
        """
        raise NotImplementedError


def own_inputs(tokens: Tokens, inputs: int | None) -> Bool[np.ndarray, "T J"]:
    """Which of the last `inputs`, None for all, each row is."""
    return np.eye(tokens.length, dtype=bool)[:, tokens.length - (tokens.length if inputs is None else inputs) :]


def visible(operator: Operator, mask: Mask, q: Tokens, k: Tokens) -> Bool[Mapped, "T S"]:
    """Who can influence whom in one attention."""
    return operator.visible(q, k, mask.dense(q, k))


def shapes(architecture: Architecture, blueprint: Blueprint) -> tuple[Model, int]:
    """A model of shapes alone, and how many normals its parameters are drawn from."""
    counted = Noise()
    return nnx.eval_shape(lambda: architecture.create(blueprint, counted)), counted.taken


def initialise(
    architecture: Architecture, blueprint: Blueprint, key: Key[jax.Array, ""], taken: int | None = None
) -> Model:
    """A model whose parameters are drawn from `key`, with as many normals as `shapes` counts, if not told."""
    count = shapes(architecture, blueprint)[1] if taken is None else taken
    return architecture.create(blueprint, Noise(jax.random.normal(key, (count,))))
