"""Position schemes that rotate queries and keys."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.positions.base import Dims, Parameters, PositionScheme, Side, needs_even
from positionbias.spec import ConfigError, member, require
from positionbias.tokens import Tokens

Pairs = Literal["neighbours", "halves"]
REACH = 64  # powers of s_0 = 2/7 that leave float32 room for products of xpos
HEAD_SIZE = "head size (model.width / model.heads)"


def frequencies(size: int, base: float) -> Float[jax.Array, "size/2"]:
    """Radians a position of each pair of `size` features: base^(-2m/size)."""
    return base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)


def turned(
    x: Float[jax.Array, "... T N H"],
    position: jax.Array,
    frequency: Float[jax.Array, "H/2"],
    pairs: Pairs = "neighbours",
) -> Float[jax.Array, "... T N H"]:
    """Every pair of features turned by position times its frequency, computed in float32."""
    half = x.shape[-1] // 2
    angle = position[..., None, None].astype(jnp.float32) * frequency  # [..., T, 1, H/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    axis, shape = (-1, (half, 2)) if pairs == "neighbours" else (-2, (2, half))
    both = x.astype(jnp.float32).reshape(*x.shape[:-1], *shape)
    first, second = (jax.lax.index_in_dim(both, i, axis, keepdims=False) for i in (0, 1))
    return jnp.stack([first * cos - second * sin, first * sin + second * cos], axis).reshape(x.shape).astype(x.dtype)


@member("positions", "rope")
@dataclasses.dataclass(frozen=True)
class RoPE(PositionScheme):
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864): pair m of q and k turns by t * base^(-2m/R).

    The score of a rotated query and key depends on positions only through i - j. The first R = `fraction` * H features
    of a head, rounded down, turn and the rest stays (GPT-NeoX, Black et al. 2022, arXiv 2204.06745); `pairs` are
    neighbours (2m, 2m+1), as in the paper, or halves (m, m + R/2), as in GPT-NeoX. `scaling` fits positions that are
    `factor` times as long into those trained on: "linear" turns by t / factor (position interpolation, Chen et al.
    2023, arXiv 2306.15595); "ntk" takes the base * factor^(R/(R-2)), which keeps the fastest pair and slows the slowest
    `factor` times (NTK-aware; Peng et al. 2023, arXiv 2309.00071, section 3.1). Both hold in training as in evaluation.
    """

    known_as = ("rotary", "roformer")

    base: float = 10000.0
    fraction: float = 1.0
    scaling: Literal["none", "linear", "ntk"] = "none"
    factor: float = 1.0
    pairs: Literal["neighbours", "halves"] = "neighbours"

    def __post_init__(self) -> None:
        require(self.base > 1, "base", self.base, "a number above 1")
        require(0 < self.fraction <= 1, "fraction", self.fraction, "a number above 0 and at most 1")
        require(1 <= self.factor <= 65536, "factor", self.factor, "a number from 1 to 65536")
        good = self.scaling != "none" or self.factor == 1
        require(good, "factor", self.factor, "1 where scaling is 'none', else scaling='linear' or scaling='ntk'")

    def _size(self, head_size: int) -> int:
        """R, the features of a head that turn."""
        return int(self.fraction * head_size + 1e-9)  # rounding must not take a feature away

    def check(self, dims: Dims) -> None:
        size = self._size(dims.head_size)
        if self.fraction == 1:
            needs_even("rope", size, HEAD_SIZE)
        if size % 2 or not size:
            raise ConfigError(
                f"rope.fraction = {self.fraction} turns {size} of the {dims.head_size} features of a head; allowed: a"
                f" fraction that turns an even number of them, from 2."
            )
        if self.scaling == "ntk" and size == 2:
            raise ConfigError(
                "rope.scaling = 'ntk' slows all pairs but the first, and only one pair turns; allowed: 'none' or"
                " 'linear', or a larger head size or fraction."
            )

    def rotate(self, x: jax.Array, tokens: Tokens, params: Parameters, side: Side) -> jax.Array:
        size, position = self._size(x.shape[-1]), jnp.asarray(tokens.position)
        base = self.base * self.factor ** (size / (size - 2)) if self.scaling == "ntk" else self.base
        position = position / self.factor if self.scaling == "linear" else position
        moved = turned(x[..., :size], position, frequencies(size, base), self.pairs)
        return moved if size == x.shape[-1] else jnp.concatenate([moved, x[..., size:]], axis=-1)


@member("positions", "xpos")
@dataclasses.dataclass(frozen=True)
class XPos(PositionScheme):
    """Rotary embedding whose pairs fade with distance (xPos, Sun et al. 2022, arXiv 2212.10554).

    Pair m turns as in `rope`, and is scaled by s_m^(t / scale_base) in q and by its inverse in k, with
    s_m = (2m + 0.4 H) / (1.4 H): its share of the score shrinks as s_m^((i - j) / scale_base), so that keys that come
    later grow; the paper has causal attention in mind. The authors' code counts t from the middle of the sequence,
    which cancels in the score and is left out here.
    """

    base: float = 10000.0
    scale_base: float = 512.0

    def __post_init__(self) -> None:
        require(self.base > 1, "base", self.base, "a number above 1")
        require(self.scale_base > 0, "scale_base", self.scale_base, "a number above 0")

    def check(self, dims: Dims) -> None:
        needs_even("xpos", dims.head_size, HEAD_SIZE)
        if dims.length - 1 > REACH * self.scale_base:
            raise ConfigError(
                f"xpos.scale_base = {self.scale_base} takes keys at position {dims.length - 1} out of the range of"
                f" float32; allowed: a number from {math.ceil((dims.length - 1) / REACH)}."
            )

    def rotate(self, x: jax.Array, tokens: Tokens, params: Parameters, side: Side) -> jax.Array:
        size, position = x.shape[-1], jnp.asarray(tokens.position)
        fading = (jnp.arange(0, size, 2, dtype=jnp.float32) + 0.4 * size) / (1.4 * size)  # s_m
        power = position[..., None, None].astype(jnp.float32) / self.scale_base
        scale = jnp.repeat(fading ** (power if side == "query" else -power), 2, axis=-1)
        moved = turned(x.astype(jnp.float32), position, frequencies(size, self.base))
        return (moved * scale).astype(x.dtype)


@member("positions", "dual_rope")
@dataclasses.dataclass(frozen=True)
class DualRoPE(PositionScheme):
    """Rotary embedding at position + gamma * frame: tokens of a frame turn together, as they turn alone.

    After the temporal-aware dual RoPE of TC-LLaVA (Gao et al. 2024, arXiv 2409.03206), which rotates by the position
    in the sequence and by the number of the frame. How it mixes the two is ours: rotations commute, so that both are
    one rotation at the sum, and `gamma` is all there is to choose. 0 is `rope`; within a frame every gamma is. Text
    is of the time of the latest (largest) frame stored before it.
    """

    gamma: float = 1.0
    base: float = 10000.0

    reads = frozenset({"position", "time"})

    def __post_init__(self) -> None:
        require(abs(self.gamma) <= 65536, "gamma", self.gamma, "a number from -65536 to 65536")
        require(self.base > 1, "base", self.base, "a number above 1")

    def check(self, dims: Dims) -> None:
        needs_even("dual_rope", dims.head_size, HEAD_SIZE)

    def rotate(self, x: jax.Array, tokens: Tokens, params: Parameters, side: Side) -> jax.Array:
        position = jnp.asarray(tokens.position) + self.gamma * jnp.asarray(tokens.time)
        return turned(x, position, frequencies(x.shape[-1], self.base))
