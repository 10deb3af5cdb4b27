"""Mamba-2: a state space model as linear attention with a decay and a step size of each token's own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Float, Tree
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import (
    Recurrent,
    all_convolved,
    by_head,
    convolution_matrices,
    gate_matrix,
    held,
    normed,
    only_valid,
    product,
    rotated,
)
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require


@member("operators", "mamba2")
@dataclasses.dataclass(frozen=True)
class Mamba2(Recurrent):
    """S_t = e^(-d_t a) S_(t-1) + d_t B_t x_t', y_t = C_t S_t + D x_t, a head (Dao and Gu 2024, arXiv 2405.21060).

    C, B and x are what a layer calls queries, keys and values, each of a head's own (the paper's multi-head pattern,
    section 7.2), through a causal convolution of `convolution` tokens a feature and a SiLU, as in its section 7.1;
    d_t = softplus(w . stream_t + b). What joins the stream is y silu(z), z a gate made of the stream, over its root
    mean square. Step sizes start from 0.001 to 0.1 and a from 1 to 16, spread evenly in the logarithm over heads (the
    paper draws them).
    """

    known_as = ("ssd", "mamba_2")

    convolution: int = 4

    def __post_init__(self) -> None:
        require(1 <= self.convolution <= 65536, "convolution", self.convolution, "a whole number from 1 to 65536")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {
            "gate": gate_matrix(dims),
            **step_matrices(dims),
            "skip": Matrix((dims.heads,), "gate", dims.width, "constant(value=1.0)"),
            **convolution_matrices(self.convolution, dims),
        }

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        return {"open": product(x, params["gate"]), "size": step_sizes(stream, params)}

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
        q, k = rotated(position, q, k, tokens, tokens)
        size = only_valid(params["size"], tokens)
        decay = -size * rates(params)
        written = only_valid(k.astype(jnp.float32) * size[..., None], tokens)
        mixed, memory = kernels.linear_attention(
            q.astype(jnp.float32),
            written,
            v.astype(jnp.float32),
            log_decay=site("log_decay", decay),
            initial_state=held(state, "memory"),
            resets=asked.resets(),
        )
        mixed = mixed + params["skip"].astype(jnp.float32)[:, None] * v.astype(jnp.float32)
        mixed = normed(mixed * by_head(jax.nn.silu(params["open"]), q.shape[2]))
        return only_valid(mixed.astype(v.dtype), tokens), {"convolved": convolved, "memory": memory}


def step_matrices(dims: Dims) -> dict[str, Matrix]:
    """What `step_sizes` and `rates` read."""
    return {
        "step": Matrix((dims.width, dims.heads), "gate", dims.width, "fan_in"),
        "step_offset": Matrix((dims.heads,), "gate", dims.width, "constant(value=0.0)"),
        "log_rate": Matrix((dims.heads,), "gate", dims.width, "constant(value=0.0)"),
    }


def step_sizes(stream: Float[jax.Array, "B T D"], params: Parameters) -> Float[jax.Array, "B T N"]:
    """d of each token and head, in float32."""
    started = spread(0.001, 0.1, params["step"].shape[1])
    offset = started + np.log(-np.expm1(-started))  # whose softplus is where steps start
    return jax.nn.softplus(product(stream, params["step"]) + params["step_offset"] + offset)


def rates(params: Parameters) -> Float[jax.Array, "N"]:
    """a of each head, in float32."""
    return jnp.asarray(spread(1.0, 16.0, len(params["log_rate"]))) * jnp.exp(params["log_rate"].astype(jnp.float32))


def spread(least: float, most: float, heads: int) -> Float[np.ndarray, "N"]:
    """Numbers spread evenly in the logarithm, one a head; for a single head the one in the middle."""
    places = np.linspace(0.0, 1.0, heads) if heads > 1 else np.array([0.5])
    return (least * (most / least) ** places).astype(np.float32)
