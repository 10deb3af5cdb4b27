"""Orthogonal memory: the past as a mean of coefficients in an orthonormal basis, beside exact local attention."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, rows_times
from positionbias.masks.base import Mask
from positionbias.operators.asked import Asked, with_before
from positionbias.operators.base import Pattern, SiteFunction
from positionbias.operators.recurrent import (
    Interleaved,
    Recurrent,
    State,
    by_head,
    held,
    like,
    only_valid,
    rejoined,
    running,
    runs,
    sees_all,
    there,
)
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters
from positionbias.spec import member, require
from positionbias.tokens import Tokens

LEAST_ROWS = 8  # of a block of queries, which are multiplied at once
ROWS = 1024  # whose scores are there at once


@member("operators", "orthogonal_memory")
@dataclasses.dataclass(frozen=True)
class OrthogonalMemory(Recurrent):
    """Attention to `slots` vectors that hold the mean of what came, and to the last `window` tokens (LAVO).

    Zhang et al. 2023 (arXiv 2312.11135), of which we could read the outline: with b_j the orthonormal basis of a head
    (trained, made orthonormal by Gram and Schmidt's rule) and x_i = W x a token in it, slot j at step t is h_j = b_j (1
    / t) sum over i <= t of b_j . x_i; keys and values are the slots themselves, and in the window the x_i, with a
    trained number a head and distance added to the score. `join`: one softmax over slots and window (`joint`), or the
    sum of one each (`sum`); the source does not say which. A mean of projections is the projection of the mean, so that
    of what lies behind the window `slots` numbers a head are left, which hold few keys with their values: where each
    key with each value has a direction of its own, all of these are no more than `heads` times `slots`. Under
    `bidirectional` the mean is that of all tokens, and the window still holds the last. With `window=0` the slots are
    all that is read, whatever `join`; so it may be of another sequence, in which a query has no place for a window: the
    mean is that of its tokens, all or those stored up to the query.
    """

    known_as = ("lavo",)

    slots: int = 16
    window: int = 16
    join: Literal["joint", "sum"] = "joint"

    reads = "stream"
    uses_rotation = False

    def __post_init__(self) -> None:
        require(1 <= self.slots <= 65536, "slots", self.slots, "a whole number from 1 to 65536")
        require(0 <= self.window <= 65536, "window", self.window, "a whole number from 0 to 65536")

    @property
    def patterns(self) -> frozenset[Pattern]:  # type: ignore[override]
        own: frozenset[Pattern] = frozenset({"causal_self", "noncausal_self"})
        return own if self.window else own | {"causal_cross", "noncausal_cross"}

    def lacking(self, pattern: Pattern) -> str:
        return "its window, unless it is 0, looks back from a place in one sequence"

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        size = dims.heads * dims.head_size
        require(self.slots <= dims.head_size, "slots", self.slots, f"at most the head size, {dims.head_size}")
        made = {
            "query": Matrix((dims.width, size), "query", dims.width),
            "token": Matrix((dims.read, size), "key", dims.read),
            "output": Matrix((size, dims.width), "output", size),
            "basis": Matrix((dims.heads, dims.head_size, self.slots), "memory", dims.head_size, "fan_in"),
        }
        if self.window:
            shape = dims.heads, self.window
            made["by_distance"] = Matrix(shape, "position", self.window, "constant(value=0.0)")
        return made

    def advance_stream(
        self, x: jax.Array, asked: Asked, params: Parameters, site: SiteFunction, state: State | None
    ) -> tuple[jax.Array, State]:
        tokens = asked.tokens_q
        heads, basis = len(params["basis"]), _orthonormal(params["basis"].astype(jnp.float32))
        token, told = _told(x, tokens, params, basis)
        total: tuple[jax.Array, ...] = told
        if sees_all(asked.mask):
            total = tuple(jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True), x.shape) for x in total)
        else:
            begun = held(state, "total") or (None, None)
            total = tuple(_sums(x, asked, before) for x, before in zip(total, begun, strict=True))
        mean = total[0] / jnp.maximum(total[1], 1)[..., None]
        after: State = {"total": tuple(x[:, -1] for x in total)}
        if not self.window:
            return only_valid(_of_slots(x, mean, params, basis), tokens), after
        query, output = (params[name].astype(x.dtype) for name in ("query", "output"))
        joined, kept = _window(token, there(tokens, len(x)), self.window, asked, held(state, "window"))
        size = joined[0].shape[1] - x.shape[1]
        rows = min(max(size + 1, LEAST_ROWS), x.shape[1])
        by_distance = params["by_distance"].astype(jnp.float32)
        by_distance = jnp.take(by_distance, np.clip(_back(rows, size), 0, size), axis=1).transpose(1, 0, 2)

        def attended(x: jax.Array, mean: jax.Array, *joined: jax.Array) -> jax.Array:
            q = by_head(rows_times(x, query), heads).astype(jnp.float32) * token.shape[-1] ** -0.5
            q, mean = (_cut(one, rows) for one in (q, mean))
            nearby, valid, *segments = (_overlapping(one, rows, size) for one in joined)
            back = _back(rows, size)
            seen = valid[:, :, None] & ((back >= 0) & (back <= size))
            for segment in segments:
                seen = seen & (segment[:, :, None] == segment[:, :, size:, None])
            far = jnp.einsum("BCINH,NHR->BCINR", q, basis) * mean
            near = jnp.einsum("BCINH,BCJNH->BCINJ", q, nearby) + by_distance
            seen = jnp.broadcast_to(seen[:, :, :, None], near.shape)
            if self.join == "joint":
                everything = jnp.concatenate([far, near], axis=-1)
                weights = masked_softmax(everything, jnp.concatenate([jnp.ones_like(far, bool), seen], axis=-1))
                by_far, by_near = weights[..., : self.slots], weights[..., self.slots :]
            else:
                by_far, by_near = jax.nn.softmax(far, axis=-1), masked_softmax(near, seen)
            slots = jnp.einsum("BCINR,NHR->BCINH", by_far * mean, basis)
            read = slots + jnp.einsum("BCINJ,BCJNH->BCINH", by_near, nearby)
            read = read.reshape(len(x), -1, output.shape[0])[:, : x.shape[1]]
            return rows_times(read.astype(x.dtype), output)

        piece = max(ROWS // rows, 1) * rows
        if x.shape[1] > piece:
            parts = (*(_cut(one, piece) for one in (x, mean)), *(_overlapping(one, piece, size) for one in joined))
            inside = jax.checkpoint(attended)
            found = jax.lax.map(lambda parts: inside(*parts), tuple(jnp.moveaxis(one, 1, 0) for one in parts))
            mixed = rejoined(found, x.shape[1])
        else:
            mixed = attended(x, mean, *joined)
        return only_valid(mixed, tokens), after | {"window": kept}

    def mix_across(
        self,
        x: jax.Array,
        stream: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        basis = _orthonormal(params["basis"].astype(jnp.float32))
        _, told = _told(stream, tokens_k, params, basis)
        if sees_all(mask):
            total = [jnp.sum(one, axis=1, keepdims=True) for one in told]
        else:
            rows = Interleaved.of(tokens_q, tokens_k, len(x))
            total = [rows.asked(jnp.cumsum(rows.of_keys(one), axis=1)) for one in told]
        mean = total[0] / jnp.maximum(total[1], 1)[..., None]
        return only_valid(_of_slots(x, mean, params, basis), tokens_q)


def _told(
    stream: Float[jax.Array, "B S E"], tokens: Tokens, params: Parameters, basis: Float[jax.Array, "N H R"]
) -> tuple[Float[jax.Array, "B S N H"], tuple[Float[jax.Array, "B S N R"], Float[jax.Array, "B S 1"]]]:
    """The vectors of tokens, and what each adds to sums: its coefficients, and 1; 0 of padding."""
    token = by_head(rows_times(stream, params["token"]), len(basis)).astype(jnp.float32)
    token, valid = only_valid(token, tokens), there(tokens, len(stream))[..., None]
    return token, (jnp.einsum("BSNH,NHR->BSNR", token, basis), valid.astype(jnp.float32))


def _of_slots(
    x: Float[jax.Array, "B T D"], mean: Float[jax.Array, "B M N R"], params: Parameters, basis: jax.Array
) -> Float[jax.Array, "B T D"]:
    """What is read of slots alone, each a mean coefficient times its vector of the basis; M is 1 for all rows, or T."""
    query, output = (params[name].astype(x.dtype) for name in ("query", "output"))
    q = by_head(rows_times(x, query), len(basis)).astype(jnp.float32) * basis.shape[1] ** -0.5
    shares = jax.nn.softmax(jnp.einsum("BTNH,NHR->BTNR", q, basis) * mean, axis=-1)
    read = jnp.einsum("BTNR,NHR->BTNH", shares * mean, basis)
    return rows_times(read.reshape(*x.shape[:2], -1).astype(x.dtype), output)


def _window(
    token: Float[jax.Array, "B T N H"],
    valid: Bool[jax.Array, "B T"],
    window: int,
    asked: Asked,
    before: tuple[jax.Array, jax.Array] | None,
) -> tuple[tuple[jax.Array, ...], tuple[Float[jax.Array, "B W-1 N H"], Bool[jax.Array, "B W-1"]]]:
    """What windows read of the tokens and those before, and what is carried on.

    Read are their vectors, whether they are no padding and, where the mask has segments, which one each is in: two or
    three arrays of W - 1 + T rows.
    """
    size = min(window, asked.length) - 1
    both = [with_before(x, y, size) for x, y in zip((token, valid), before or (None, None), strict=True)]
    read, (last, carried) = (both[0][0], both[1][0]), (both[0][1], both[1][1])
    resets = asked.resets()
    if resets is None:
        return read, (last, carried)
    run = jnp.broadcast_to(runs(resets, size), read[1].shape)
    return (*read, run), (last, carried & (run[:, valid.shape[1] :] == run[:, -1:]))


def _overlapping(x: Float[jax.Array, "B W-1+T ..."], rows: int, size: int) -> Float[jax.Array, "B count W-1+rows ..."]:
    """Blocks of so many rows with the `size` before them; by row, every key would be copied `window` times."""
    count = -(-(x.shape[1] - size) // rows)
    if count == 1:
        return x[:, None]
    return jnp.concatenate([_cut(x[:, : count * rows], rows)[:, :, :size], _cut(x[:, size:], rows)], axis=2)


def _cut(x: Float[jax.Array, "B T ..."], rows: int) -> Float[jax.Array, "B count rows ..."]:
    """In blocks of so many rows, with zeros behind the last."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % rows)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(len(x), -1, rows, *x.shape[2:])


def _back(rows: int, size: int) -> np.ndarray:
    """How far each key of a block is before each query."""
    return np.arange(rows)[:, None] + size - np.arange(rows + size)


def _orthonormal(columns: Float[jax.Array, "N H R"]) -> Float[jax.Array, "N H R"]:
    """Gram and Schmidt's basis of the columns, each taken out of twice, as once leaves what rounding put in.

    It is that of a QR decomposition but for signs, which make no difference; LAPACK's is not called, as two programs at
    once that did have hung on CPUs.
    """

    def add(basis: jax.Array, new: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        at, column = new
        for _ in range(2):
            column = column - jnp.einsum("NHR,NR->NH", basis, jnp.einsum("NHR,NH->NR", basis, column))
        # What is left of a column that lies among those before is 0, and a norm has no derivative there.
        column = column / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(column), axis=-1, keepdims=True), 1e-18))
        return basis.at[..., at].set(column), None

    each = jnp.arange(columns.shape[-1]), jnp.moveaxis(columns, -1, 0)
    return jax.lax.scan(add, jnp.zeros_like(columns), each)[0]


def _sums(
    x: Float[jax.Array, "B T ..."], asked: Asked, before: Float[jax.Array, "B ..."] | None
) -> Float[jax.Array, "B T ..."]:
    """Of all rows up to each, of its segment."""
    resets = asked.resets()
    found = jnp.cumsum(x, axis=1) if resets is None else running(jnp.add, x, resets)
    if before is None:
        return found
    return found + (before[:, None] if resets is None else before[:, None] * like(runs(resets, 0) == 0, x))
