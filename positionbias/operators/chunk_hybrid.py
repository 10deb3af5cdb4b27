"""Attention inside chunks and a linear state between them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Bool, Float, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import Operator, SiteFunction
from positionbias.operators.recurrent import (
    gate_matrix,
    in_chunks,
    normed,
    only_valid,
    opened,
    product,
    rejoined,
    rotated,
)
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "chunk_hybrid")
@dataclasses.dataclass(frozen=True)
class ChunkHybrid(Operator):
    """Softmax attention among the tokens of a chunk, plus what a state holds of the chunks before (ARFlow).

    Hui et al. 2025 (arXiv 2501.16085, section 3), as its released code has it: queries, keys and values over their root
    mean squares, keys also over sqrt(H); log g = log sigmoid(w . x) / `slowness`, a token and head; S_(c+1) = exp(mean
    of log g in c) S_c + K_c' V_c, and a query reads S_c times exp of the sum of log g in its chunk up to itself; the
    sum of both over its root mean square, through the swish of a gate made of the stream. A chunk is `chunk` tokens in
    the order of storage. The mask is obeyed inside chunks (`block_causal` for the paper's, `causal` for one that reads
    no later token) and must let all of the chunks before be seen.
    """

    chunk: int = 16
    slowness: float = 16.0

    patterns = frozenset({"causal_self"})
    any_mask = False
    uses_bias = False

    def __post_init__(self) -> None:
        require(1 <= self.chunk <= 65536, "chunk", self.chunk, "a whole number from 1 to 65536")
        require(0.01 <= self.slowness <= 1e6, "slowness", self.slowness, "a number from 0.01 to 1000000")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        decay = Matrix((dims.width, dims.heads), "gate", dims.width, "fan_in")
        return {"gate": gate_matrix(dims), "decay": decay}

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        log_decay = jax.nn.log_sigmoid(product(stream, params["decay"])) / self.slowness
        return {"open": product(x, params["gate"]), "log_decay": log_decay}

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        q, k = rotated(position, normed(q), normed(k), tokens_q, tokens_k)
        k, v = k * k.shape[-1] ** -0.5, normed(v)
        inner = kernels.attention(q, k, v, mask=mask & _OwnChunk(self.chunk), tokens=(tokens_q, tokens_k), scale=1.0)
        decay = only_valid(site("log_decay", params["log_decay"]), tokens_k)
        cross = self._across(q, only_valid(k, tokens_k), v, decay)
        mixed = normed(inner + cross.astype(v.dtype))
        return only_valid(opened(mixed, params["open"]), tokens_q)

    def _across(
        self, q: jax.Array, k: jax.Array, v: jax.Array, decay: Float[jax.Array, "B T N"]
    ) -> Float[jax.Array, "B T N K"]:
        """What queries read of the chunks before their own."""

        def one(state: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            q, k, v, decay = part
            near = jnp.exp(jnp.cumsum(decay, axis=1))
            read = jnp.einsum("BCNH,BNHK->BCNK", q * near[..., None], state)
            kept = jnp.exp(jnp.mean(decay, axis=1))[..., None, None]
            return kept * state + jnp.einsum("BCNH,BCNK->BNHK", k, v), read

        begin = jnp.zeros((len(q), q.shape[2], k.shape[-1], v.shape[-1]))
        _, read = jax.lax.scan(one, begin, tuple(in_chunks(x, self.chunk) for x in (q, k, v, decay)))
        return rejoined(read, q.shape[1])

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        rows, columns = tokens_q.rows(), tokens_k.columns()
        own, theirs = rows.index // self.chunk, columns.index // self.chunk
        return rows.valid & columns.valid & ((allowed & (own == theirs)) | (theirs < own))

    def state_size(self, dims: Dims) -> int:
        chunk = min(self.chunk, dims.length) * (dims.head_size + dims.values)
        return dims.heads * (dims.head_size * dims.values + chunk)


@dataclasses.dataclass(frozen=True)
class _OwnChunk(Mask):
    """Tokens of one chunk see each other."""

    size: int

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return q.index // self.size == k.index // self.size
