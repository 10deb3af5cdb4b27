"""Windows that learn where they lie and how wide they are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import Operator, SiteFunction, reasons
from positionbias.operators.choosing import all_pairs
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "varied_window")
@dataclasses.dataclass(frozen=True)
class VariedWindow(Operator):
    """Varied-size window attention in one dimension: every window of `width` tokens sees `width` sampled keys.

    VSA (Zhang et al. 2022, arXiv 2204.08446). The mean of a window's stream, through LeakyReLU, makes a scale s and an
    offset o a head, by matrices and biases that start at zero; keys and values are interpolated between tokens at

        centre + (1 + s) (u - (width - 1) / 2) + o width / 2,    u = 0 .. width - 1,

    and the window's queries see them by softmax, with a trained bias for each head and difference of places in an
    unscaled window. Beyond the ends keys and values are zero, of score 0 and not hidden, and so are those of padding.
    At the start it is attention in windows that do not overlap. Keys are rotated before they are sampled; schemes that
    add to scores are refused. The pattern is that on tokens, which sums to less than 1 beyond the ends. A window is
    placed by what all of its tokens hold and may come to lie anywhere: masks may hide nothing but padding.
    """

    width: int = 8
    scaled: bool = True

    patterns = frozenset({"noncausal_self"})
    lacks = reasons(
        causal_self="a window is placed by the mean of all its tokens, later ones too",
        cross="a window is of the queries and keys of the same tokens",
    )
    any_mask = False
    uses_bias = False
    has_pattern = True
    whole = "keys are sampled by what all tokens of a window hold"

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "a whole number from 1")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        zero = "constant(value=0.0)"
        return {
            "place": Matrix((dims.width, 2 * dims.heads), "window", dims.width, zero),
            "place_bias": Matrix((2 * dims.heads,), "window", 1, zero),
            "table": Matrix((dims.heads, 2 * self.width - 1), "window_table", 1, "normal(std=0.02)"),
        }

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        return {"stream": stream}

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
        valid = jnp.broadcast_to(jnp.asarray(tokens_k.valid), k.shape[:2])
        q, k = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        near = self.samples(params, valid)  # [B, N, W, U, S]
        keys = jnp.einsum("BNWUS,BSNH->BNWUH", near, k.astype(jnp.float32))
        scores = jnp.einsum("BWLNH,BNWUH->BNWLU", self._windows(q.astype(jnp.float32)), keys)
        scores = scores * (q.shape[-1] ** -0.5 if self.scaled else 1.0)
        places = np.arange(self.width)
        scores = scores + params["table"][:, None, places[:, None] - places + self.width - 1]
        pattern = jnp.einsum("BNWLU,BNWUS->BNWLS", jax.nn.softmax(scores, axis=-1), near)
        pattern = pattern.reshape(*pattern.shape[:2], -1, pattern.shape[-1])[:, :, : q.shape[1]]
        awake = jnp.broadcast_to(jnp.asarray(tokens_q.valid), q.shape[:2])
        pattern = site("pattern", pattern * awake[:, None, :, None])
        return jnp.einsum("BNTS,BSNK->BTNK", pattern.astype(v.dtype), v)

    def samples(self, params: Parameters, valid: jax.Array) -> Float[jax.Array, "B N W U S"]:
        """How much of each token's key and value is in each sample of each window."""
        kept = self._windows(valid[..., None])  # [B, W, L, 1]
        stream = self._windows(jnp.where(valid[..., None], params["stream"].astype(jnp.float32), 0.0))
        mean = jnp.sum(stream, axis=2) / jnp.maximum(jnp.sum(kept, axis=2), 1)
        told = jax.nn.leaky_relu(mean, 0.01) @ params["place"] + params["place_bias"]  # [B, W, 2 N]
        scale, offset = jnp.split(jnp.swapaxes(told, 1, 2)[..., None], 2, axis=1)  # [B, N, W, 1]
        half = (self.width - 1) / 2
        centre = np.arange(mean.shape[1])[:, None] * self.width + half
        at = centre + (1 + scale) * (np.arange(self.width) - half) + offset * (self.width / 2)
        near = jax.nn.relu(1 - jnp.abs(at[..., None] - np.arange(valid.shape[1])))
        return near * valid[:, None, None, None]

    def _windows(self, x: Float[jax.Array, "B T ..."]) -> Float[jax.Array, "B W L ..."]:
        """By windows, the last filled up with zeros."""
        filled = jnp.pad(x, [(0, 0), (0, -x.shape[1] % self.width)] + [(0, 0)] * (x.ndim - 2))
        return filled.reshape(len(x), -1, self.width, *x.shape[2:])

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        return all_pairs(tokens_q, tokens_k, causal=False)

    def state_size(self, dims: Dims) -> int:
        return (2 * dims.heads * dims.head_size + dims.width) * dims.length  # keys, values and the stream: no cut
