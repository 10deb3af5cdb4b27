"""Fourier mixing: a transform of the stream over features and time, without parameters."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Int, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import Operator, SiteFunction
from positionbias.positions.base import Dims, Parameters
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "fourier")
@dataclasses.dataclass(frozen=True)
class Fourier(Operator):
    """y_t = Re sum over s <= t of e^(-2 pi i t s / `period`) (F x)_s / sqrt(`period` D), F the transform over features.

    FNet (Lee-Thorp et al. 2021, arXiv 2105.03824, equation 3) sums over all s; FNetAR (Lou et al. 2021, arXiv
    2107.10932) is causal, by a rule that we could not read: this one is ours. Sums are of those s that the mask lets t
    see, so that time and memory grow as T^2, t and s places in storage from 0; `period`, N of the transform, is fixed
    so that outputs do not depend on what is still to come. The weights know places alone. The scale is that of an
    orthonormal transform (ours).
    """

    known_as = ("fnet", "fnetar")

    period: int = 512

    reads = "stream"
    patterns = frozenset({"causal_self", "noncausal_self"})
    uses_rotation = False
    uses_bias = False
    whole = "row t weighs row s by the product t s, so that no sum over rows serves the row after"

    def __post_init__(self) -> None:
        require(2 <= self.period <= 65536, "period", self.period, "a whole number from 2 to 65536")

    def mix(self, x: jax.Array, tokens: Tokens, mask: Mask, params: Parameters, site: SiteFunction) -> jax.Array:
        made = jnp.fft.fft(x.astype(jnp.float32), axis=-1, norm="ortho")
        places = jnp.arange(x.shape[1])
        angles = turned(places[:, None], places, self.period) * (2 * jnp.pi / self.period)
        allowed = jnp.asarray(mask.dense(tokens, tokens))
        real, imaginary = (jnp.where(allowed, part(angles), 0.0) for part in (jnp.cos, jnp.sin))
        found = real @ made.real + imaginary @ made.imag
        return (found * self.period**-0.5).astype(x.dtype)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        return allowed

    def state_size(self, dims: Dims) -> int:
        return dims.length * dims.width


def turned(t: Int[jax.Array, "..."], s: Int[jax.Array, "..."], period: int) -> Int[jax.Array, "..."]:
    """t s modulo `period`, up to 65536; of two numbers below that the product has 32 bits, and no sign."""
    t, s = (x.astype(jnp.uint32) % period for x in (t, s))
    return t * s % period
