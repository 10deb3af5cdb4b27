"""Named operands of rules: what each says by its kind is which axis it goes along."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.errors import ConfigError
from positionbias.kernels.rules import Argument

Sizes = tuple[int, int, int, int]  # B, N, T, S


@dataclasses.dataclass(frozen=True, eq=False)
class Aux:
    """An array, and along which axis of [B, N, T, S] it goes."""

    array: Any
    letters: ClassVar[tuple[str, ...]]  # shapes that are allowed

    def argument(self, name: str, sizes: Sizes) -> Argument:
        """As a rule gets it: without the batch axis, and broadcasting to [N, T, S]. ConfigError for a wrong shape."""
        told = dict(zip("BNTS", sizes, strict=True), R=sizes[2] + sizes[3] - 1)
        kind = type(self).__name__
        if not isinstance(self.array, jax.Array | np.ndarray | np.generic | bool | int | float):
            raise ConfigError(f"aux[{name!r}], {kind}, holds a {type(self.array).__name__}; allowed: an array.")
        if not isinstance(self.array, jax.Array) and np.asarray(self.array).dtype.kind in "OSUMm":
            held = np.asarray(self.array).dtype  # objects, text or times
            raise ConfigError(f"aux[{name!r}], {kind}, holds an array of {held}; allowed: one of numbers or booleans.")
        shape = np.shape(self.array)
        found = next((word for word in self.letters if shape == tuple(told[letter] for letter in word)), None)
        if found is None:
            kinds = " or ".join(str([told[letter] for letter in word]) for word in self.letters)
            raise ConfigError(f"aux[{name!r}], {kind}, has shape {list(shape)}; allowed: {kinds}.")
        return self._placed(found, sizes)

    def _placed(self, word: str, sizes: Sizes) -> Argument:
        own = word.startswith("B")
        inner = tuple(size if letter in word else 1 for letter, size in zip("NTS", sizes[1:], strict=True))
        inner = inner if "N" in word else inner[1:]
        array = self._typed()
        return Argument(array.reshape(array.shape[:own] + inner), own)

    def _typed(self) -> Any:
        """The array, of a type that jax has."""
        return self.array if isinstance(self.array, jax.Array) else np.asarray(self.array, jnp.result_type(self.array))


class PerQuery(Aux):
    """A number a query, [T] or [B, T]."""

    letters = ("T", "BT")


class PerKey(Aux):
    """A number a key, [S] or [B, S]."""

    letters = ("S", "BS")


class PerHead(Aux):
    """A number a query head, [N]."""

    letters = ("N",)


class Scalar(Aux):
    """One number, []."""

    letters = ("",)


class Relative(Aux):
    """A number for each difference of indices, [T + S - 1] or [N, T + S - 1].

    Entry i - j + S - 1 is read by query i and key j.
    """

    letters = ("R", "NR")

    def _placed(self, word: str, sizes: Sizes) -> Argument:
        return Argument(self._typed(), by_difference=True)


AUX_KINDS = (PerQuery, PerKey, PerHead, Scalar, Relative)
