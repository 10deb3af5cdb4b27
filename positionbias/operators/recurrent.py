"""What operators by recurrences share: whom they see, what they leave out, and the parts around the recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Bool, Float, Int, Mapped, Tree, rows_times
from positionbias.masks.base import Mask
from positionbias.masks.groups import Segments
from positionbias.masks.order import Bidirectional, Causal, SlidingWindow
from positionbias.operators.asked import Asked, with_before
from positionbias.operators.base import Operator, reasons
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.tokens import Tokens, running_most, sequential

State = dict[str, Tree]  # what an operator carries on, by name


class Recurrent(Operator):
    """Mixes values by a state that is carried from token to token in the order of storage.

    What is seen is told by order alone: all tokens up to a token's own or, where the operator has the pattern and the
    mask is `bidirectional`, all of them. Where the mask cuts the sequence into segments, none of which sees another,
    what is carried is cleared as one begins, unless the operator is `endless`. Any other mask that hides more is
    refused. The call is `advance` on all rows at once. Of another sequence a query reads the keys that are stored up to
    it (`across`), or all of them.
    """

    family = "linear attention and recurrences"
    patterns = frozenset({"causal_self"})
    lacks = reasons(
        noncausal_self="what it carries goes from each token to those behind it alone",
        cross="what it carries goes from token to token of one sequence",
    )
    any_mask = False
    uses_bias = False

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        rows, columns = tokens_q.rows(), tokens_k.columns()
        there = rows.valid & columns.valid
        everything = (allowed | ~there).all(axis=(-2, -1))[..., None, None]
        before = columns.index <= rows.index
        if not self.endless and allowed.shape[-2] == allowed.shape[-1]:
            segment = _segments(allowed)
            other = (tokens_q.index != tokens_k.index).any(axis=-1)[..., None, None]  # keys of another sequence
            before = before & (other | (segment[..., :, None] == segment[..., None, :]))
        return there & (before | (everything & self._sees_all))

    def refuses(self, mask: Mask, tokens_q: Tokens, tokens_k: Tokens) -> str:
        """The values of a mask may be traced, so that whether it hides nothing is told by its name alone."""
        if not self._sees_all or sees_all(mask):
            return ""
        rows, columns = tokens_q.rows(), tokens_k.columns()
        seen = np.asarray(self.visible(tokens_q, tokens_k, mask.dense(tokens_q, tokens_k)))
        behind = (seen & np.asarray(columns.index > rows.index)).any()
        if not behind:
            return ""
        return (
            "what is behind a query is read under `bidirectional` alone, by its name; allowed: the mask bidirectional,"
            " or one that hides some of it"
        )

    def goes_beyond(self, allowed: Bool[np.ndarray, "T S"], beyond: Int[np.ndarray, "P 2"]) -> str:
        behind = beyond[beyond[:, 1] < beyond[:, 0]]
        if self.endless or not len(behind) or allowed.shape[0] != allowed.shape[1]:
            return super().goes_beyond(allowed, beyond)
        first = behind[0, 0]
        crossing = np.argwhere(allowed[first:, :first])
        if not len(crossing):
            return super().goes_beyond(allowed, beyond)
        row, key = crossing[0]
        return (
            "what it carries is cleared only where no position from there on sees one before, and position"
            f" {first + row} sees position {key}"
        )

    @property
    def _sees_all(self) -> bool:
        return "noncausal_self" in self.patterns


def _segments(allowed: Bool[Mapped, "... T T"]) -> Int[Mapped, "... T"]:
    """Which segment each row is in, counted: one begins where no row from there on sees any before it."""
    size = allowed.shape[-1]
    places = np.arange(size)
    first = (allowed * (places - size)).min(axis=-1) + size  # that each row sees; S where it sees none
    return (-running_most(-first[..., ::-1])[..., ::-1] >= places).cumsum(axis=-1)


def sees_all(mask: Mask) -> bool:
    """Whether the mask lets every token see every other."""
    return isinstance(mask, Bidirectional)


def of_one_sequence(tokens_q: Tokens, tokens_k: Tokens) -> bool:
    """Whether queries and keys are of the same sequence; of traced tokens, whether they are the same arrays."""
    q, k = tokens_q.index, tokens_k.index
    return q is k or (isinstance(q, np.ndarray) and isinstance(k, np.ndarray) and np.array_equal(q, k))


class Interleaved(NamedTuple):
    """The rows of two sequences in the order in which they are stored, a key before the query of its own place."""

    order: Int[jax.Array, "B S+T"]  # which row stands where: of the keys, 0 to S - 1, or, from S on, of the queries
    keys: int  # S

    @classmethod
    def of(cls, tokens_q: Tokens, tokens_k: Tokens, batch: int) -> Interleaved:
        stored = [
            jnp.broadcast_to(jnp.asarray(tokens.index) * 2 + later, (batch, tokens.length))
            for tokens, later in ((tokens_k, 0), (tokens_q, 1))
        ]
        return cls(jnp.argsort(jnp.concatenate(stored, axis=-1), axis=-1), tokens_k.length)

    def of_keys(self, x: Float[jax.Array, "B S ..."]) -> Float[jax.Array, "B S+T ..."]:
        """What is of the keys, and zeros for the queries."""
        return self._filled(x, (0, self.order.shape[-1] - self.keys))

    def of_queries(self, x: Float[jax.Array, "B T ..."]) -> Float[jax.Array, "B S+T ..."]:
        """What is of the queries, and zeros for the keys."""
        return self._filled(x, (self.keys, 0))

    def asked(self, x: Float[jax.Array, "B S+T ..."]) -> Float[jax.Array, "B T ..."]:
        """What comes out for the queries, in their own order."""
        return _taken(x, jnp.argsort(self.order, axis=-1)[:, self.keys :])

    def _filled(self, x: jax.Array, room: tuple[int, int]) -> jax.Array:
        return _taken(jnp.pad(x, [(0, 0), room] + [(0, 0)] * (x.ndim - 2)), self.order)


def _taken(x: Float[jax.Array, "B T ..."], rows: Int[jax.Array, "B R"]) -> Float[jax.Array, "B R ..."]:
    return jnp.take_along_axis(x, rows.reshape(*rows.shape, *(1,) * (x.ndim - 2)), axis=1)


def across(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S N H"],
    v: Float[jax.Array, "B S N K"],
    tokens_q: Tokens,
    tokens_k: Tokens,
    log_decay: Float[jax.Array, "B S N H"] | None = None,
    state: Float[jax.Array, "B N H K"] | None = None,
    normalise: bool = False,
    feature: Callable[[jax.Array], jax.Array] | None = None,
) -> Float[jax.Array, "B T N K"]:
    """What each query reads of the keys of another sequence that are stored up to its own place.

    One recurrence over both in the order stored, in which a query writes nothing and no state decays at it; padding
    writes nothing either. `feature` is that of `kernels.linear_attention`.
    """
    rows = Interleaved.of(tokens_q, tokens_k, len(q))
    mixed, _ = kernels.linear_attention(
        rows.of_queries(q),
        rows.of_keys(k),
        rows.of_keys(v),
        log_decay=None if log_decay is None else rows.of_keys(log_decay),
        initial_state=state,
        normalise=normalise,
        valid=rows.of_keys(there(tokens_k, len(k))),
        feature=feature,
    )
    return rows.asked(mixed)


def rotated(
    position: Placed, q: jax.Array, k: jax.Array, tokens_q: Tokens, tokens_k: Tokens
) -> tuple[Float[jax.Array, "B T N H"], Float[jax.Array, "B S N H"]]:
    """Queries and keys as the position scheme turns them."""
    return position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")


def there(tokens: Tokens, batch: int) -> Bool[jax.Array, "B T"]:
    """Which tokens of each sequence are no padding."""
    return jnp.broadcast_to(jnp.asarray(tokens.valid), (batch, tokens.length))


def only_valid(x: Float[jax.Array, "B T ..."], tokens: Tokens) -> Float[jax.Array, "B T ..."]:
    """Zero where a token is padding."""
    valid = there(tokens, len(x))
    return x * valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)).astype(x.dtype)


def in_chunks(x: Float[jax.Array, "B T ..."], size: int) -> Float[jax.Array, "chunks B size ..."]:
    """The tokens in chunks, in float32, with zeros behind the last; of fewer than `size`, one chunk of them all."""
    size = min(size, x.shape[1])
    count = -(-x.shape[1] // size)
    x = jnp.pad(x.astype(jnp.float32), [(0, 0), (0, count * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(len(x), count, size, *x.shape[2:]), 1, 0)


def rejoined(x: Float[jax.Array, "chunks B size ..."], length: int) -> Float[jax.Array, "B T ..."]:
    """The first `length` tokens of chunks."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])[:, :length]


def by_head(x: Float[jax.Array, "B T ..."], heads: int) -> Float[jax.Array, "B T N ..."]:
    """Features cut into heads."""
    return x.reshape(*x.shape[:2], heads, -1)


def normed(x: Float[jax.Array, "... K"]) -> Float[jax.Array, "... K"]:
    """Each head's output over its root mean square; a scale would be one with the output matrix that follows."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def unit(x: Float[jax.Array, "... H"]) -> Float[jax.Array, "... H"]:
    """Vectors of length 1; 0 stays 0."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.sum(jnp.square(y), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def gate_matrix(dims: Dims) -> Matrix:
    """What makes a gate on the output of the stream: one a value channel."""
    return Matrix((dims.width, dims.heads * dims.values), "gate", dims.width, "fan_in")


def product(x: Float[jax.Array, "B T D"], matrix: Float[jax.Array, "D E"]) -> Float[jax.Array, "B T E"]:
    """x W in float32, as gates and decays are computed."""
    return rows_times(x.astype(jnp.float32), matrix)


def held(state: State | None, name: str) -> Tree:
    """A part of the state; None before the first row."""
    return None if state is None else state[name]


def runs(resets: Bool[jax.Array, "... T"], size: int) -> Int[jax.Array, "... W+T"]:
    """Which segment each row is in, and the `size` before: 0 is what was carried on, until a row is reset."""
    counted = jnp.cumsum(resets, axis=-1)
    return jnp.pad(counted, [(0, 0)] * (counted.ndim - 1) + [(size, 0)])


def like(chosen: Bool[jax.Array, "... T"], x: Float[jax.Array, "B T ..."]) -> Float[jax.Array, "... T ..."]:
    """1 where chosen, else 0, to be multiplied by x."""
    return chosen.reshape(*chosen.shape, *(1,) * (x.ndim - 2)).astype(x.dtype)


def running(
    join: Callable[[jax.Array, jax.Array], jax.Array],
    x: Float[jax.Array, "B T ..."],
    resets: Bool[jax.Array, "... T"],
) -> Float[jax.Array, "B T ..."]:
    """All up to each row, joined, from where its segment begins."""

    def one(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (begun, before), (fresh, now) = left, right
        chosen = fresh.reshape(*fresh.shape, *(1,) * (x.ndim - 2))
        return begun | fresh, jnp.where(chosen, now, join(before, now))

    resets = jnp.broadcast_to(resets, x.shape[:2])
    return jax.lax.associative_scan(one, (resets, x), axis=1)[1]


def convolved(
    x: Float[jax.Array, "B T N H"],
    kernel: Float[jax.Array, "W N*H"],
    before: Float[jax.Array, "B W-1 N H"] | None,
    asked: Asked,
) -> tuple[Float[jax.Array, "B T N H"], Float[jax.Array, "B W-1 N H"]]:
    """Each feature by a weighted sum of its last W values in the order of storage; kernel[0] is that of the token.

    Of values of its own segment, that is. Also the last values, which the next rows read; of a sequence of fewer tokens
    than W no more than those.
    """
    taps = kernel.astype(x.dtype).reshape(len(kernel), *x.shape[2:])
    size, length, resets = min(len(kernel), asked.length) - 1, x.shape[1], asked.resets()
    joined, after = with_before(x, before, size)
    found = x * taps[0]
    for lag in range(1, size + 1):
        moved = joined[:, size - lag : size - lag + length]
        if resets is not None:
            run = runs(resets, size)
            moved = moved * like(run[..., size - lag : size - lag + length] == run[..., size:], x)
        found = found + moved * taps[lag]
    if resets is not None:
        run = runs(resets, size)
        after = after * like(run[..., length:] == run[..., -1:], x)
    return found, after


def convolution_matrix(width: int, features: int) -> Matrix:
    """A short convolution of so many features."""
    return Matrix((width, features), "convolution", width, "fan_in")


def convolution_matrices(width: int, dims: Dims) -> dict[str, Matrix]:
    """Those of queries, keys and values, as `all_convolved` reads them."""
    sizes = {"q": dims.head_size, "k": dims.head_size, "v": dims.values}
    return {f"convolution_{name}": convolution_matrix(width, dims.heads * size) for name, size in sizes.items()}


def all_convolved(
    q: jax.Array, k: jax.Array, v: jax.Array, asked: Asked, params: Parameters, before: State | None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], State]:
    """Queries, keys and values of one sequence, each by its short convolution, and what these carry on."""
    made, after = {}, {}
    for name, x in (("q", q), ("k", k), ("v", v)):
        kernel, x = params[f"convolution_{name}"], only_valid(x, asked.tokens_q)
        made[name], after[name] = convolved(x, kernel, held(before, name), asked)
    return (made["q"], made["k"], made["v"]), after


def near(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T N H"],
    v: Float[jax.Array, "B T N K"],
    width: int,
    asked: Asked,
    before: State | None,
) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N T"], State]:
    """Softmax attention to the last `width` tokens, the logarithms of its sums, and the keys and values carried on."""
    size, length, tokens, resets = min(width, asked.length) - 1, q.shape[1], asked.tokens_q, asked.resets()
    parts = {"k": k, "v": v, "valid": there(tokens, len(q))}
    joined = {name: with_before(x, held(before, name), size) for name, x in parts.items()}
    after = {name: last for name, (_, last) in joined.items()}
    mask: Mask = Causal() & SlidingWindow(width)
    segment: Mapped = np.zeros(size + length, np.int32)  # of numpy: tokens that are known stay so
    if resets is not None:
        mask, segment = mask & Segments(), runs(resets, size)
        after["valid"] = after["valid"] & (segment[..., length:] == segment[..., -1:])
    if before is None:
        rows = columns = tokens._replace(segment=segment[..., size:])
    else:
        k, v, valid = (joined[name][0] for name in parts)
        columns = sequential(size + length, valid=valid, segment=segment)
        rows = columns.cut(size, size + length)
    mixed, stats = kernels.attention(q, k, v, mask=mask, tokens=(rows, columns), stats=("lse",))
    assert stats.lse is not None
    return mixed, stats.lse, after


def opened(mixed: Float[jax.Array, "B T N K"], gate: Float[jax.Array, "B T N*K"]) -> Float[jax.Array, "B T N K"]:
    """An output through the swish of a gate."""
    return mixed * by_head(jax.nn.silu(gate), mixed.shape[2]).astype(mixed.dtype)
