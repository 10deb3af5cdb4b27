"""The delta rule: a memory that corrects what it holds under a key in place of adding to it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from positionbias import kernels
from positionbias.arrays import Tree
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.mamba2 import rates, step_matrices, step_sizes
from positionbias.operators.recurrent import (
    Recurrent,
    all_convolved,
    convolution_matrices,
    gate_matrix,
    held,
    normed,
    only_valid,
    opened,
    product,
    rotated,
    unit,
)
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require


@dataclasses.dataclass(frozen=True)
class _Delta(Recurrent):
    """S <- a S; S <- S + b k (v - k S)'; o = q S, with q and k of length 1."""

    convolution: int = 4
    most: float = 1.0

    decays: ClassVar[bool]

    def __post_init__(self) -> None:
        require(1 <= self.convolution <= 65536, "convolution", self.convolution, "a whole number from 1 to 65536")
        require(0 < self.most <= 2, "most", self.most, "a number above 0 and at most 2")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        made = {
            "strength": Matrix((dims.width, dims.heads), "gate", dims.width, "fan_in"),
            **convolution_matrices(self.convolution, dims),
        }
        if self.decays:
            made |= {"gate": gate_matrix(dims), **step_matrices(dims)}
        return made

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        made = {"write": self.most * jax.nn.sigmoid(product(stream, params["strength"]))}
        if self.decays:
            decay = -step_sizes(stream, params) * rates(params)
            made |= {"open": product(x, params["gate"]), "log_decay": decay}
        return made

    def advance(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        asked: Asked,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
        state: Tree,
    ) -> tuple[jax.Array, Tree]:
        tokens = asked.tokens_q
        made, convolved = all_convolved(q, k, v, asked, params, held(state, "convolved"))
        q, k, v = (jax.nn.silu(x) for x in made)
        decay = None
        if self.decays:
            decay = site("log_decay", only_valid(params["log_decay"], tokens))
        strength = site("strength", only_valid(params["write"], tokens))
        q, k = rotated(position, unit(q), unit(k), tokens, tokens)
        mixed, memory = kernels.delta_rule(
            q * q.shape[-1] ** -0.5,
            k,
            v,
            strength,
            log_decay=decay,
            initial_state=held(state, "memory"),
            resets=asked.resets(),
        )
        mixed = only_valid(opened(normed(mixed), params["open"]) if self.decays else normed(mixed), tokens)
        return mixed, {"convolved": convolved, "memory": memory}


@member("operators", "delta")
@dataclasses.dataclass(frozen=True)
class Delta(_Delta):
    """S_t = S_(t-1) + b_t k_t (v_t - k_t S_(t-1))', o_t = q_t S_t / sqrt(H) (DeltaNet, Yang et al. 2024).

    arXiv 2406.06484, equations 3 to 5 and section 4: queries, keys and values through a causal convolution of
    `convolution` tokens a feature and a SiLU, queries and keys then of length 1; b_t = `most` sigmoid(w . x_t), a head;
    each head's output over its root mean square. `most` 2 allows negative eigenvalues (Grazzi et al. 2024, arXiv
    2411.12537).
    """

    known_as = ("deltanet", "delta_rule")

    decays = False


@member("operators", "gated_delta")
@dataclasses.dataclass(frozen=True)
class GatedDelta(_Delta):
    """The delta rule on a state that decays by a_t first (Gated DeltaNet, Yang et al. 2024, arXiv 2412.06464).

    Equation 10 and section 3.4 (8 and 3.3 in the first version): as `delta`, with a_t = exp(-d_t r), d_t = softplus(w .
    x_t + b), started as those of `mamba2`, and the output through the swish of a gate made of the stream.
    """

    known_as = ("gdn", "gated_deltanet")

    decays = True
