"""A short convolution of the stream: mixing that reaches a few tokens back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import Operator, SiteFunction
from positionbias.positions.base import Dims, Matrix, Parameters
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "short_convolution")
@dataclasses.dataclass(frozen=True)
class ShortConvolution(Operator):
    """y_t = sum over d < `width` of w_d x_(t-d), a kernel a feature, of those tokens that the mask lets t see.

    With `gated` y_t is multiplied by a linear map of x_t, feature by feature (BaseConv, Arora et al. 2023, arXiv
    2312.04927, section 4). Distances are places in storage.
    """

    width: int = 3
    gated: bool = False

    reads = "stream"
    patterns = frozenset({"causal_self", "noncausal_self"})
    uses_rotation = False
    uses_bias = False

    def __post_init__(self) -> None:
        require(1 <= self.width <= 65536, "width", self.width, "a whole number from 1 to 65536")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        made = {"kernel": Matrix((self.width, dims.width), "convolution", self.width, "fan_in")}
        if self.gated:
            made["map"] = Matrix((dims.width, dims.width), "gate", dims.width, "fan_in")
        return made

    def mix(self, x: jax.Array, tokens: Tokens, mask: Mask, params: Parameters, site: SiteFunction) -> jax.Array:
        found = back_to(x, tokens, mask, params["kernel"])
        if not self.gated:
            return found
        return found * (x @ params["map"].astype(x.dtype)) * own(tokens, mask)[..., None].astype(x.dtype)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        near = within(allowed, self.width)
        return by_own(near) if self.gated else near

    def state_size(self, dims: Dims) -> int:
        return (self.width - 1) * dims.width


def back_to(
    x: Float[jax.Array, "B T D"], tokens: Tokens, mask: Mask, kernel: Float[jax.Array, "W D"]
) -> Float[jax.Array, "B T D"]:
    """The convolution by a kernel of W tokens, of what each may see."""
    bound, kernel = mask.bind(tokens, tokens), kernel.astype(x.dtype)
    found = jnp.zeros_like(x)
    for lag in range(min(len(kernel), x.shape[1])):
        front, back = tokens.cut(lag, tokens.length), tokens.cut(0, tokens.length - lag)
        seen = jnp.asarray(bound.allowed(front, back) & front.valid & back.valid)
        moved = x[:, : x.shape[1] - lag] * seen[..., None].astype(x.dtype)
        found = found + kernel[lag] * jnp.pad(moved, ((0, 0), (lag, 0), (0, 0)))
    return found


def own(tokens: Tokens, mask: Mask) -> Bool[jax.Array, "... T"]:
    """Whether each token may see itself."""
    return jnp.asarray(mask.bind(tokens, tokens).allowed(tokens, tokens) & tokens.valid)


def by_own(visible: Bool[Mapped, "... T T"]) -> Bool[Mapped, "... T T"]:
    """What is visible where a token that may not see itself gives nothing."""
    return visible & visible.diagonal(axis1=-2, axis2=-1)[..., None]


def within(allowed: Bool[Mapped, "... T S"], width: int) -> Bool[Mapped, "... T S"]:
    """Of what is allowed, the `width` places up to each token's own."""
    places = np.arange(allowed.shape[-2])[:, None] - np.arange(allowed.shape[-1])
    return allowed & ((places >= 0) & (places < width))
