"""Windows over a shuffled sequence, alone or gated with a window over the sequence itself."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.arrays import Float, Mapped
from positionbias.masks.base import Mask
from positionbias.masks.drawn import RandomPermutationWindow
from positionbias.masks.order import SlidingWindow
from positionbias.operators.base import SiteFunction, over_heads
from positionbias.operators.by_kernel import ByKernel
from positionbias.operators.own_mask import OwnMask
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "stochastic")
@dataclasses.dataclass(frozen=True)
class Stochastic(OwnMask):
    """Stochastic Attention: softmax over the keys fewer than `width` places away after the tokens were shuffled.

    Jin and Sui 2026 (arXiv 2604.00754); the mask is `random_permutation_window` with the same arguments, and the
    layer's holds beside it, with positions as they were. The shuffle is that of `seed`, one for all heads, examples and
    steps: give each layer a seed of its own. A new one each step would need a key, which operators are not given.
    `impl` as in `softmax`.
    """

    width: int
    seed: int = 0
    circular: bool = False
    scaled: bool = True
    impl: str | None = None

    @property
    def own(self) -> Mask:
        return RandomPermutationWindow(self.width, self.seed, self.circular)


@member("operators", "gated_stochastic")
@dataclasses.dataclass(frozen=True)
class GatedStochastic(ByKernel):
    """`stochastic` and a softmax over a sliding window, each times a sigmoid gate of the query's stream, added.

    Jin and Sui 2026 (arXiv 2604.00754), whose gates are said to be two and sigmoid, and no more: ours are linear in the
    normed stream, two a head, with offsets that start at 0. `window` is the width of the sliding window, on either
    side, `width` where it is None. `impl` as in `softmax`, of both; the one that is told is that of the shuffled one.
    """

    width: int
    seed: int = 0
    circular: bool = False
    window: int | None = None
    scaled: bool = True
    impl: str | None = None

    family = "sparse attention"
    patterns, lacks = OwnMask.patterns, OwnMask.lacks
    whole = "its gates are made of the stream, and a step is given queries, keys and values alone"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window is None or self.window >= 1, "window", self.window, "a whole number from 1, or None")
        assert len(self.own) == 2

    @property
    def own(self) -> tuple[Mask, Mask]:
        """The masks of both branches, in the order of the gates."""
        window = self.width if self.window is None else self.window
        return RandomPermutationWindow(self.width, self.seed, self.circular), SlidingWindow(window)

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        return {
            "direction": Matrix((dims.width, 2 * dims.heads), "gate", dims.width, "fan_in(scale=1.0)"),
            "offset": Matrix((2 * dims.heads,), "gate", 1, "constant(value=0.0)"),
        }

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        asked = x.astype(jnp.float32) @ params["direction"] + params["offset"]
        return {"gates": jax.nn.sigmoid(asked).reshape(*x.shape[:2], 2, -1)}

    def fused(
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
        branches = [
            super(GatedStochastic, self).fused(q, k, v, tokens_q, tokens_k, mask & own, position, params, site)
            for own in self.own
        ]
        gates = params["gates"][..., None].astype(v.dtype)  # [B, T, 2, N, 1]
        return branches[0] * gates[:, :, 0] + branches[1] * gates[:, :, 1]

    def told_weights(
        self,
        scores: jax.Array,
        allowed: Mapped,
        q: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        gates: Float[jax.Array, "2 B N T 1"] = jnp.transpose(params["gates"], (2, 0, 3, 1))[..., None]
        shared, near = (masked_softmax(scores, allowed & over_heads(own.dense(tokens_q, tokens_k))) for own in self.own)
        return gates[0] * shared + gates[1] * near

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        shuffled, near = self.own
        return allowed & (shuffled | near).dense(tokens_q, tokens_k)

    def driver(
        self, q: jax.ShapeDtypeStruct, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, position: Placed, platform: str
    ) -> str | None:
        asked = q, tokens_q, tokens_k
        names = [super(GatedStochastic, self).driver(*asked, mask & own, position, platform) for own in self.own]
        return names[0]
