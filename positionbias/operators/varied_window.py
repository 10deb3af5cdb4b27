"""Windows that learn where they lie and how wide they are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import Operator, SiteFunction, reasons
from positionbias.operators.choosing import all_pairs, in_blocks, out_of_blocks, over_all_pairs
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

    Two tokens are read for each sample, so that products grow as T `width`; where a site reads the pattern, and of few
    tokens, as T^2.
    """

    known_as = ("vsa",)

    width: int = 8
    scaled: bool = True

    family = "sparse attention"
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
        require(1 <= self.width <= 65536, "width", self.width, "a whole number from 1 to 65536")

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
        low, part = self.places(params, valid)
        near = samples(low, part, valid) if over_all_pairs(q.shape[1], position, site) else None
        k = k.astype(jnp.float32)
        keys = sampled(k, low, part, valid) if near is None else jnp.einsum("BNWUS,BSNH->BNWUH", near, k)
        scores = jnp.einsum("BWLNH,BNWUH->BNWLU", in_blocks(q.astype(jnp.float32), self.width), keys)
        scores = scores * (q.shape[-1] ** -0.5 if self.scaled else 1.0)
        own, places = np.arange(scores.shape[3]), np.arange(self.width)
        scores = scores + params["table"][:, None, own[:, None] - places + self.width - 1]
        awake = jnp.broadcast_to(jnp.asarray(tokens_q.valid), q.shape[:2])
        shares = jax.nn.softmax(scores, axis=-1)
        if near is None:
            values = sampled(v, low, part, valid)
            mixed = jnp.einsum("BNWLU,BNWUK->BWLNK", shares.astype(v.dtype), values)
            return out_of_blocks(mixed, q.shape[1]) * awake[..., None, None].astype(v.dtype)
        pattern = jnp.einsum("BNWLU,BNWUS->BNWLS", shares, near)
        pattern = pattern.reshape(*pattern.shape[:2], -1, pattern.shape[-1])[:, :, : q.shape[1]]
        pattern = site("pattern", pattern * awake[:, None, :, None])
        return jnp.einsum("BNTS,BSNK->BTNK", pattern.astype(v.dtype), v)

    def places(
        self, params: Parameters, valid: Bool[jax.Array, "B S"]
    ) -> tuple[Int[jax.Array, "B N W U"], Float[jax.Array, "B N W U"]]:
        """The token before each sample of each window, and how much of the way to the next one it lies.

        Apart, so that where a sample lies on a token its slope is the difference of that token and the next.
        """
        kept = in_blocks(valid[..., None], self.width)  # [B, W, L, 1]
        stream = in_blocks(jnp.where(valid[..., None], params["stream"].astype(jnp.float32), 0.0), self.width)
        mean = jnp.sum(stream, axis=2) / jnp.maximum(jnp.sum(kept, axis=2), 1)
        told = jax.nn.leaky_relu(mean, 0.01) @ params["place"] + params["place_bias"]  # [B, W, 2 N]
        scale, offset = jnp.split(jnp.swapaxes(told, 1, 2)[..., None], 2, axis=1)  # [B, N, W, 1]
        half = (self.width - 1) / 2
        centre = np.arange(mean.shape[1])[:, None] * self.width + half
        at = centre + (1 + scale) * (np.arange(self.width) - half) + offset * (self.width / 2)
        low = jax.lax.stop_gradient(jnp.floor(at))
        ends = -1, valid.shape[1]  # beyond them there is nothing, however far away
        return jnp.clip(low, *ends).astype(jnp.int32), jnp.where((low >= ends[0]) & (low < ends[1]), at - low, 0.0)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        return all_pairs(tokens_q, tokens_k, causal=False)

    def state_size(self, dims: Dims) -> int:
        kept = dims.heads * (dims.head_size + dims.values) + dims.width  # keys, values and the stream: no cut
        return kept * dims.length


def samples(
    low: Int[jax.Array, "B N W U"], part: Float[jax.Array, "B N W U"], valid: Bool[jax.Array, "B S"]
) -> Float[jax.Array, "B N W U S"]:
    """How much of each token's key and value is in each sample."""
    tokens = np.arange(valid.shape[1])
    both = jnp.where(low[..., None] == tokens, 1 - part[..., None], 0.0)
    both = both + jnp.where(low[..., None] + 1 == tokens, part[..., None], 0.0)
    return both * valid[:, None, None, None]


def sampled(
    x: Float[jax.Array, "B S N H"],
    low: Int[jax.Array, "B N W U"],
    part: Float[jax.Array, "B N W U"],
    valid: Bool[jax.Array, "B S"],
) -> Float[jax.Array, "B N W U H"]:
    """`samples` of keys or values, of which the two around each sample are read."""
    ends = jnp.pad(jnp.swapaxes(x * valid[..., None, None].astype(x.dtype), 1, 2), [(0, 0), (0, 0), (1, 2), (0, 0)])

    def read(at: Int[jax.Array, "B N W U"]) -> Float[jax.Array, "B N W U H"]:
        found = jnp.take_along_axis(ends, (at + 1).reshape(*at.shape[:2], -1, 1), axis=2)
        return found.reshape(*at.shape, -1)

    part = part[..., None].astype(x.dtype)
    return read(low) * (1 - part) + read(low + 1) * part
