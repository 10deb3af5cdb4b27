"""What operators by recurrences share: whom they see, what they leave out, and the parts around the recurrence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Mapped
from positionbias.masks.base import Mask
from positionbias.masks.order import Bidirectional
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.tokens import Tokens


class Recurrent(Operator):
    """Mixes values by a state that is carried from token to token in the order of storage.

    What is seen is told by order alone: all tokens up to a token's own or, where the operator has the pattern and the
    mask is `bidirectional`, all of them. A mask that hides more is refused.
    """

    patterns = frozenset({"causal_self"})
    any_mask = False
    uses_bias = False

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        rows, columns = tokens_q.rows(), tokens_k.columns()
        there = rows.valid & columns.valid
        everything = (allowed | ~there).all(axis=(-2, -1))[..., None, None]
        return there & ((columns.index <= rows.index) | (everything & self._sees_all))

    @property
    def _sees_all(self) -> bool:
        return "noncausal_self" in self.patterns


def sees_all(mask: Mask) -> bool:
    """Whether the mask lets every token see every other."""
    return isinstance(mask, Bidirectional)


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
    """The tokens in chunks, in float32, with zeros behind the last."""
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
    return x.astype(jnp.float32) @ matrix.astype(jnp.float32)


def convolved(x: Float[jax.Array, "B T N H"], kernel: Float[jax.Array, "W N*H"]) -> Float[jax.Array, "B T N H"]:
    """Each feature by a weighted sum of its last W values in the order of storage; kernel[0] is that of the token."""
    taps = kernel.astype(x.dtype).reshape(len(kernel), *x.shape[2:])
    found = x * taps[0]
    for lag in range(1, min(len(kernel), x.shape[1])):
        moved = jnp.pad(x[:, :-lag], [(0, 0), (lag, 0)] + [(0, 0)] * (x.ndim - 2))
        found = found + moved * taps[lag]
    return found


def convolution_matrix(width: int, features: int) -> Matrix:
    """A short convolution of so many features."""
    return Matrix((width, features), "convolution", width, "fan_in")


def convolution_matrices(width: int, dims: Dims) -> dict[str, Matrix]:
    """Those of queries, keys and values, as `all_convolved` reads them."""
    sizes = {"q": dims.head_size, "k": dims.head_size, "v": dims.values}
    return {f"convolution_{name}": convolution_matrix(width, dims.heads * size) for name, size in sizes.items()}


def all_convolved(
    q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, params: Parameters
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of one sequence, each by its short convolution."""
    by_name = {"q": q, "k": k, "v": v}
    made = (convolved(only_valid(x, tokens), params[f"convolution_{name}"]) for name, x in by_name.items())
    return tuple(made)  # type: ignore[return-value]


def convolution_state(width: int, dims: Dims) -> int:
    """Numbers that these convolutions keep of the tokens before."""
    return (width - 1) * dims.heads * (2 * dims.head_size + dims.values)


def opened(mixed: Float[jax.Array, "B T N K"], gate: Float[jax.Array, "B T N*K"]) -> Float[jax.Array, "B T N K"]:
    """An output through the swish of a gate."""
    return mixed * by_head(jax.nn.silu(gate), mixed.shape[2]).astype(mixed.dtype)
