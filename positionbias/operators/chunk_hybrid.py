"""Attention inside chunks and a linear state between them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Bool, Float, Int, Mapped
from positionbias.masks.base import Bounds, Mask
from positionbias.operators.asked import Asked, taken, with_before
from positionbias.operators.base import Operator, SiteFunction, reasons
from positionbias.operators.recurrent import (
    State,
    gate_matrix,
    held,
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

    known_as = ("arflow",)

    chunk: int = 16
    slowness: float = 16.0

    family = "linear attention and recurrences"
    patterns = frozenset({"causal_self"})
    lacks = reasons(
        noncausal_self="its state holds the chunks before, and none behind",
        cross="a chunk is of the queries and keys of the same tokens",
    )
    any_mask = False
    endless = "its chunks are counted from the first token stored"
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

    def advance(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        asked: Asked,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
        state: State | None,
    ) -> tuple[jax.Array, State]:
        tokens, after = asked.tokens_q, State()
        q, k = rotated(position, normed(q), normed(k), tokens, tokens)
        k, v = k * k.shape[-1] ** -0.5, normed(v)
        inner, after["chunk"] = self._inside(q, k, v, asked, held(state, "chunk"))
        arrays = q, only_valid(k, tokens), v, only_valid(site("log_decay", params["log_decay"]), tokens)
        if state is None:
            cross, after["across"] = self._across(*arrays)
        else:
            assert asked.rows is not None
            cross, after["across"] = self._across_by_row(*arrays, asked.rows, state["across"])
        mixed = normed(inner + cross.astype(v.dtype))
        return only_valid(opened(mixed, params["open"]), tokens), after

    def _inside(
        self, q: jax.Array, k: jax.Array, v: jax.Array, asked: Asked, before: State | None
    ) -> tuple[Float[jax.Array, "B T N K"], State]:
        """Attention within chunks, and the keys and values that the next rows may see."""
        size, columns = min(self.chunk, asked.length) - 1, asked.tokens_q
        joined = {name: with_before(x, held(before, name), size) for name, x in (("k", k), ("v", v))}
        if before is not None:
            assert asked.rows is not None
            places = asked.rows[:, :1] + jnp.arange(-size, q.shape[1])
            columns = taken(asked.tokens, places)
            columns = columns._replace(valid=columns.valid & (places >= 0))
            k, v = (both for both, _ in joined.values())
        mask = asked.mask & _OwnChunk(self.chunk)
        mixed = kernels.attention(q, k, v, mask=mask, tokens=(asked.tokens_q, columns), scale=1.0)
        return mixed, {name: after for name, (_, after) in joined.items()}

    def _across(
        self, q: jax.Array, k: jax.Array, v: jax.Array, decay: Float[jax.Array, "B T N"]
    ) -> tuple[Float[jax.Array, "B T N K"], _Across]:
        """What queries read of the chunks before their own, and what is carried on."""

        def one(state: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            q, k, v, decay = part
            close = jnp.exp(jnp.cumsum(decay, axis=1))
            read = jnp.einsum("BCNH,BNHK->BCNK", q * close[..., None], state)
            kept = jnp.exp(jnp.mean(decay, axis=1))[..., None, None]
            return kept * state + jnp.einsum("BCNH,BCNK->BNHK", k, v), read

        begin = jnp.zeros((len(q), q.shape[2], k.shape[-1], v.shape[-1]))
        parts = tuple(in_chunks(x, self.chunk) for x in (q, k, v, decay))
        _, read = jax.lax.scan(one, begin, parts)
        before, _ = jax.lax.scan(one, begin, tuple(x[:-1] for x in parts))  # what no row more asks for is not made
        _, k, v, decay = (x[-1] for x in parts)
        carried = _Across(before, jnp.einsum("BCNH,BCNK->BNHK", k, v), jnp.sum(decay, axis=1))
        return rejoined(read, q.shape[1]), carried

    def _across_by_row(
        self, q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, places: jax.Array, before: _Across
    ) -> tuple[Float[jax.Array, "B T N K"], _Across]:
        """The same, a row after another."""

        def one(state: _Across, row: tuple[jax.Array, ...]) -> tuple[_Across, jax.Array]:
            q, k, v, decay, place = row
            first = place % self.chunk == 0
            kept = jnp.exp(state.decay / self.chunk)[..., None, None]
            memory = jnp.where(first[:, None, None, None], kept * state.memory + state.chunk, state.memory)
            chunk = jnp.where(first[:, None, None, None], 0.0, state.chunk) + jnp.einsum("BNH,BNK->BNHK", k, v)
            decay = jnp.where(first[:, None], 0.0, state.decay) + decay
            read = jnp.einsum("BNH,BNHK->BNK", q * jnp.exp(decay)[..., None], memory)
            return _Across(memory, chunk, decay), read

        rows = tuple(jnp.moveaxis(x, 1, 0) for x in (*(x.astype(jnp.float32) for x in (q, k, v, decay)), places))
        after, read = jax.lax.scan(one, before, rows)
        return jnp.moveaxis(read, 0, 1), after

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        rows, columns = tokens_q.rows(), tokens_k.columns()
        own, theirs = rows.index // self.chunk, columns.index // self.chunk
        return rows.valid & columns.valid & ((allowed & (own == theirs)) | (theirs < own))


class _Across(NamedTuple):
    """What is carried from row to row."""

    memory: Float[jax.Array, "B N H K"]  # of the chunks before the last row's
    chunk: Float[jax.Array, "B N H K"]  # what that chunk adds, so far
    decay: Float[jax.Array, "B N"]  # the logarithm of its decays, so far


@dataclasses.dataclass(frozen=True)
class _OwnChunk(Mask):
    """Tokens of one chunk see each other."""

    size: int

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return q.index // self.size == k.index // self.size

    def outline(self, q: Tokens, k: Tokens, block: tuple[int, int]) -> Int[np.ndarray, "..."]:
        return Bounds.of(q.index // self.size, k.index // self.size, block).equal()
