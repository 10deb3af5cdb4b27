"""MD-TPE: where a token stands, told by sums of what came before it along each axis."""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Bool, Float, Int, Mapped, Tree, rows_times
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import Recurrent, by_head, held, normed, only_valid, runs
from positionbias.positions.base import Dims, Matrix, Parameters
from positionbias.spec import ConfigError, member, require
from positionbias.tokens import Tokens

RANDOM = "normal(std=1.0)"


@member("operators", "md_tpe")
@dataclasses.dataclass(frozen=True)
class MDTPE(Recurrent):
    """y_t = sum over axes of W norm(sum over s <= t of g^n (q . k) x_s), n the places from s to t along the axis.

    LightNet's multi-dimensional Toeplitz positional encoding (Qin et al. 2024, arXiv 2405.21022) as its released code
    has it: trained vectors q and k and a decay g = sigmoid(a) for each axis and head, the same for all tokens; a head
    has an equal share of the stream's features; each head's sum over its root mean square, and a matrix W an axis. On
    an axis, tokens that agree in the fields of all other `axes` follow one another as they are stored, so that with one
    axis all tokens do. The source runs it once, over the embeddings. Here it is the operator of a layer in front,
    `[md_tpe] + [lightnet] * 4`, as what it mixes is up to the mask like all mixing.
    """

    axes: tuple[str, ...] = ("position",)

    reads = "stream"
    uses_rotation = False

    def __post_init__(self) -> None:
        known = set(Tokens._fields) - {"valid"}
        good = isinstance(self.axes, tuple) and 0 < len(self.axes) == len(set(self.axes)) and set(self.axes) <= known
        require(good, "axes", self.axes, f"one or more different names among {', '.join(sorted(known))}")

    @property
    def reads_tokens(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(self.axes) if len(self.axes) > 1 else frozenset()

    @property
    def carries(self) -> bool:
        """Of one axis a head's sum is all there is to carry; of several, the last one of every line."""
        return len(self.axes) == 1

    @property
    def whole(self) -> str:  # type: ignore[override]
        return "" if self.carries else "a line of tokens along an axis comes back after any number of others"

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        if dims.width % dims.heads:
            raise ConfigError(
                f"md_tpe needs a stream whose features {dims.heads} heads share evenly, got {dims.width}; allowed:"
                " multiples of model.heads."
            )
        shape = len(self.axes), dims.heads
        return {
            "query": Matrix((*shape, dims.width // dims.heads), "toeplitz", dims.width, RANDOM),
            "key": Matrix((*shape, dims.width // dims.heads), "toeplitz", dims.width, RANDOM),
            "decay": Matrix(shape, "toeplitz", dims.width, RANDOM),
            "output": Matrix((len(self.axes), dims.width, dims.width), "output", dims.width),
        }

    def advance_stream(
        self, x: jax.Array, asked: Asked, params: Parameters, site: SiteFunction, state: Tree
    ) -> tuple[jax.Array, Tree]:
        sums = jnp.einsum("ANK,ANK->AN", *(params[name].astype(jnp.float32) for name in ("query", "key")))
        log_decay = jax.nn.log_sigmoid(params["decay"].astype(jnp.float32))
        values = by_head(only_valid(x.astype(jnp.float32), asked.tokens_q), sums.shape[1])
        found, after = jnp.zeros(x.shape, jnp.float32), {}
        for i, axis in enumerate(self.axes):
            mixed, after[axis] = self._summed(values, sums[i], log_decay[i], axis, asked, held(state, axis))
            found = found + rows_times(normed(mixed).reshape(x.shape), params["output"][i])
        return only_valid(found.astype(x.dtype), asked.tokens_q), after

    def _summed(
        self,
        x: Float[jax.Array, "B T N K"],
        factor: Float[jax.Array, "N"],
        log_decay: Float[jax.Array, "N"],
        axis: str,
        asked: Asked,
        state: Float[jax.Array, "B N 1 K"] | None,
    ) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N 1 K"]]:
        """The sums along one axis: a recurrence whose query and key are the same at every step, and so one number."""
        resets, order = asked.resets(), None
        if len(self.axes) > 1:
            line = _lines(asked.tokens_q, [name for name in self.axes if name != axis], resets, len(x))
            order = jnp.argsort(line, axis=-1)
            line = jnp.take_along_axis(line, order, axis=-1)
            resets = jnp.diff(line, axis=-1, prepend=line[:, :1]) != 0
            x = jnp.take_along_axis(x, order[..., None, None], axis=1)
        ones = jnp.ones((*x.shape[:3], 1), jnp.float32)
        mixed, state = kernels.linear_attention(
            ones * factor[:, None],
            ones,
            x,
            log_decay=jnp.broadcast_to(log_decay, x.shape[:3]),
            initial_state=state,
            resets=resets,
        )
        if order is not None:
            mixed = jnp.take_along_axis(mixed, jnp.argsort(order, axis=-1)[..., None, None], axis=1)
        return mixed, state

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        seen = super().visible(tokens_q, tokens_k, allowed)
        if len(self.axes) == 1:
            return seen
        along = [_agree(tokens_q, tokens_k, [name for name in self.axes if name != axis]) for axis in self.axes]
        return seen & functools.reduce(operator.or_, along)


def _agree(tokens_q: Tokens, tokens_k: Tokens, fields: list[str]) -> Bool[Mapped, "... T S"]:
    """Which tokens have the same in all of these fields."""
    rows, columns = tokens_q.rows(), tokens_k.columns()
    return functools.reduce(operator.and_, [getattr(rows, name) == getattr(columns, name) for name in fields])


def _lines(
    tokens: Tokens, fields: list[str], resets: Bool[jax.Array, "... T"] | None, batch: int
) -> Int[jax.Array, "B T"]:
    """The first token of each one's line: those that agree in these fields, and in the segment if there are any."""
    same = jnp.asarray(_agree(tokens, tokens, fields))
    if resets is not None:
        segment = runs(resets, 0)
        same = same & (segment[..., :, None] == segment[..., None, :])
    return jnp.broadcast_to(jnp.argmax(same, axis=-1), (batch, tokens.length))
