"""Gated associative memory: a convolution beside a bank of patterns that is the same for every text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Mapped, Tree, rows_times
from positionbias.operators.asked import Asked
from positionbias.operators.base import Operator, SiteFunction
from positionbias.operators.short_convolution import back_to, by_own, within
from positionbias.positions.base import Dims, Matrix, Parameters
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "associative_memory")
@dataclasses.dataclass(frozen=True)
class AssociativeMemory(Operator):
    """y = sigmoid(g_1) * local + sigmoid(g_2) * softmax(x M') M, g a linear map of x (GAM, Acharya 2025).

    arXiv 2509.00605: `local` is a causal convolution of `width` tokens a feature, with an offset; M holds `slots`
    trained patterns. The bank is read by what the token itself is, and nothing is written to it, so that no token hears
    of one `width` or more places back: a control for recall.
    """

    known_as = ("gam",)

    slots: int = 512
    width: int = 3

    reads = "stream"
    patterns = frozenset({"causal_self", "noncausal_self"})
    uses_rotation = False
    uses_bias = False

    def __post_init__(self) -> None:
        require(1 <= self.slots <= 65536, "slots", self.slots, "a whole number from 1 to 65536")
        require(1 <= self.width <= 65536, "width", self.width, "a whole number from 1 to 65536")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {
            "kernel": Matrix((self.width, dims.width), "convolution", self.width, "fan_in"),
            "offset": Matrix((dims.width,), "convolution", self.width, "constant(value=0.0)"),
            "bank": Matrix((self.slots, dims.width), "memory", dims.width, "fan_in"),
            "gates": Matrix((dims.width, 2 * dims.width), "gate", dims.width, "fan_in"),
        }

    def advance_stream(
        self, x: jax.Array, asked: Asked, params: Parameters, site: SiteFunction, state: Tree
    ) -> tuple[jax.Array, Tree]:
        bank = params["bank"].astype(x.dtype)
        local, state = back_to(x, asked, params["kernel"], state)
        local = local + params["offset"].astype(x.dtype)
        scores = jnp.einsum("BTD,MD->BTM", x, bank, preferred_element_type=jnp.float32)
        recalled = jax.nn.softmax(scores, axis=-1).astype(x.dtype) @ bank
        gates = jax.nn.sigmoid(rows_times(x, params["gates"]))
        open_local, open_recalled = jnp.split(gates, 2, axis=-1)
        found = open_local * local + open_recalled * recalled
        return found * asked.sees_back(0)[..., None].astype(x.dtype), state

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        return by_own(within(allowed, self.width))
