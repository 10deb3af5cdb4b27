"""Position schemes that learn what to add to the score for each bucket of distances."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Int
from positionbias.positions.base import Dims, Matrix, Parameters, PositionScheme
from positionbias.spec import member, require

MOST = 65536


@member("positions", "t5_bias")
@dataclasses.dataclass(frozen=True)
class T5Bias(PositionScheme):
    """A trained number a head for each of `buckets` buckets of distances (Raffel et al. 2020, arXiv 1910.10683).

    The nearer half of the buckets holds one distance each, the others grow as logarithms up to `farthest`, and what is
    farther shares the last. With `both_sides` (T5's encoder) keys that come later have half of the buckets; without
    (its decoder) they count as distance 0. T5 shares one table among its layers; here every layer has its own.
    """

    known_as = ("t5",)

    buckets: int = 32
    farthest: int = 128
    both_sides: bool = False

    def __post_init__(self) -> None:
        fewest = 4 if self.both_sides else 2
        good = fewest <= self.buckets <= MOST and self.buckets % fewest == 0
        require(good, "buckets", self.buckets, f"a multiple of {fewest} up to {MOST}")
        what = f"a whole number from {self._exact + 1}, behind the distances that have a bucket of their own, to {MOST}"
        require(self._exact < self.farthest <= MOST, "farthest", self.farthest, what)

    @property
    def _side(self) -> int:
        """Buckets of one side."""
        return self.buckets // 2 if self.both_sides else self.buckets

    @property
    def _exact(self) -> int:
        """Buckets of one distance each."""
        return self._side // 2

    def bucket(self) -> Int[np.ndarray, "D"]:
        """The bucket of each distance back, from 0 to `farthest`."""
        away = np.arange(self.farthest + 1)
        grown = np.log(np.maximum(away, 1) / self._exact) / math.log(self.farthest / self._exact)
        # Rounding must not put a distance that begins a bucket into the one before.
        far = self._exact + np.floor(grown * (self._side - self._exact) + 1e-9).astype(np.int32)
        return np.where(away < self._exact, away, np.minimum(far, self._side - 1)).astype(np.int32)

    def layer_parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {"table": Matrix((dims.heads, self.buckets), "position", self.buckets)}

    def looked_up(self, away: Int[jax.Array, "... T S"], heads: int, params: Parameters) -> jax.Array:
        back = jnp.abs(away) if self.both_sides else jnp.maximum(away, 0)
        bucket = jnp.asarray(self.bucket())[jnp.minimum(back, self.farthest)]
        if self.both_sides:
            bucket = bucket + jnp.where(away < 0, self._side, 0)
        return jnp.moveaxis(params["table"].astype(jnp.float32)[:, bucket], 0, -3)
