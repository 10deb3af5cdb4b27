"""A short convolution of the stream: mixing that reaches a few tokens back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Mapped, Tree, rows_times
from positionbias.operators.asked import Asked, with_before
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

    def advance_stream(
        self, x: jax.Array, asked: Asked, params: Parameters, site: SiteFunction, state: Tree
    ) -> tuple[jax.Array, Tree]:
        found, state = back_to(x, asked, params["kernel"], state)
        if self.gated:
            found = found * rows_times(x, params["map"]) * asked.sees_back(0)[..., None].astype(x.dtype)
        return found, state

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        near = within(allowed, self.width)
        return by_own(near) if self.gated else near


def back_to(
    x: Float[jax.Array, "B T D"],
    asked: Asked,
    kernel: Float[jax.Array, "W D"],
    before: Float[jax.Array, "B W-1 D"] | None,
) -> tuple[Float[jax.Array, "B T D"], Float[jax.Array, "B W-1 D"]]:
    """The convolution by a kernel of W tokens, of what each may see, and the tokens that the next rows may."""
    kernel, size = kernel.astype(x.dtype), min(len(kernel), asked.length) - 1
    joined, after = with_before(x, before, size)
    found = jnp.zeros_like(x)
    for lag in range(size + 1):
        moved = joined[:, size - lag : size - lag + x.shape[1]]
        found = found + kernel[lag] * (moved * asked.sees_back(lag)[..., None].astype(x.dtype))
    return found, after


def by_own(visible: Bool[Mapped, "... T T"]) -> Bool[Mapped, "... T T"]:
    """What is visible where a token that may not see itself gives nothing."""
    return visible & visible.diagonal(axis1=-2, axis2=-1)[..., None]


def within(allowed: Bool[Mapped, "... T S"], width: int) -> Bool[Mapped, "... T S"]:
    """Of what is allowed, the `width` places up to each token's own."""
    places = np.arange(allowed.shape[-2])[:, None] - np.arange(allowed.shape[-1])
    return allowed & ((places >= 0) & (places < width))
