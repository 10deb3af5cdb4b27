"""The operator protocol: how values are mixed once queries, keys and values are known, or how the stream itself is.

An operator with `reads = "qkv"` is called with what the layer's matrices make of the stream; one with
`reads = "stream"` gets the normed stream in `mix` and has no matrices but its own `parameters`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Mapped
from positionbias.masks.base import Mask
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.tokens import Tokens

Pattern = Literal["noncausal_self", "causal_self", "noncausal_cross", "causal_cross"]


class Operator:
    """Mixes values, or the stream, over positions."""

    axis = "operators"
    reads: ClassVar[Literal["qkv", "stream"]] = "qkv"
    reads_tokens: ClassVar[frozenset[str]] = frozenset()  # fields of tokens that matter to it, beside index and valid
    patterns: ClassVar[frozenset[Pattern]] = frozenset()
    uses_rotation: ClassVar[bool] = True  # honours a scheme's `rotate`; False where the stream is read
    uses_bias: ClassVar[bool] = True  # honours a scheme's `bias`; False where the stream is read
    uses_products: ClassVar[bool] = False  # honours a scheme's `products`
    any_mask: ClassVar[bool] = True  # honours every mask; False for those that see all keys, or all up to their own
    has_pattern: ClassVar[bool] = False  # returns a [B, N, T, S] pattern that can be recorded and edited

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        """The operator's own parameters, by name, a set a layer; `dims.width` is that of the layer's input."""
        return {}

    def projected(
        self, x: Float[jax.Array, "B T D"], stream: Float[jax.Array, "B S E"], params: Parameters
    ) -> Parameters:
        """What it reads of the queries' and the keys' normed streams beside q, k and v, by name: gates, say.

        The call gets these arrays along with its parameters, whose names they may not have.
        """
        return {}

    def __call__(
        self,
        q: Float[jax.Array, "B T N H"],
        k: Float[jax.Array, "B S N H"],
        v: Float[jax.Array, "B S N K"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
    ) -> Float[jax.Array, "B T N K"]:
        """Mix `v` along S (`reads = "qkv"`). `site(name, value)` lets an intermediate be recorded or edited."""
        raise NotImplementedError

    def mix(
        self, x: Float[jax.Array, "B T D"], tokens: Tokens, mask: Mask, params: Parameters, site: SiteFunction
    ) -> Float[jax.Array, "B T D"]:
        """What joins the stream, as wide as the normed stream `x` it is made from (`reads = "stream"`)."""
        raise NotImplementedError

    def step(
        self,
        q: Float[jax.Array, "B T N H"],
        k: Float[jax.Array, "B S N H"],
        v: Float[jax.Array, "B S N K"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
    ) -> Float[jax.Array, "B T N K"]:
        """Some rows of a sequence of S, as the call on all of them gives them; `k` and `v` were kept of earlier calls.

        `mask` is bound to the whole sequence. Keys that no row given here may see can hold anything.
        """
        raise NotImplementedError

    @property
    def steps(self) -> bool:
        """Whether it has a `step`, by which sequences are generated with keys and values kept."""
        mine, base = type(self), Operator
        return mine.step is not base.step and mine.projected is base.projected

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Bool[Mapped, "... T S"]) -> Bool[Mapped, "... T S"]:
        """Who can influence whom, given the mask; must lie within it. A build is refused where it does not.

        numpy or jax arrays, as the tokens are: array operators only.
        """
        return allowed

    def driver(
        self, q: jax.ShapeDtypeStruct, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, position: Placed, platform: str
    ) -> str | None:
        """Which driver of a kernel computes it for queries of this shape and type; None if there is no choice.

        Raises ConfigError where the one that the operator names cannot.
        """
        return None

    def state_size(self, dims: Dims) -> int:
        """Numbers kept per layer to generate the next token after `dims.length` tokens."""
        raise NotImplementedError


class SiteFunction:
    """`site(name, value)` returns the value, recorded or edited if that was asked for."""

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        raise NotImplementedError

    def wanted(self, name: str) -> bool:
        """Whether the site is recorded or edited, for operators that would not make its value otherwise."""
        raise NotImplementedError


class ScoreOperator(Operator):
    """Weights values by a function of the scores q . k (times 1/sqrt(H) if `scaled`) of the keys a query may see."""

    scaled: bool

    patterns = frozenset({"noncausal_self", "causal_self", "noncausal_cross", "causal_cross"})
    has_pattern = True
    uses_products = True

    def weights(
        self, scores: Float[jax.Array, "B N T S"], allowed: Bool[jax.Array, "..."]
    ) -> Float[jax.Array, "B N T S"]:
        """The weights on values, zero where not `allowed`, which broadcasts against the scores."""
        raise NotImplementedError

    def told_weights(
        self,
        scores: Float[jax.Array, "B N T S"],
        allowed: Bool[jax.Array, "..."],
        q: Float[jax.Array, "B T N H"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        params: Parameters,
        site: SiteFunction,
    ) -> Float[jax.Array, "B N T S"]:
        """The weights, for operators whose weights depend on more than scores: on tokens, queries or parameters."""
        return self.weights(scores, allowed)

    def fused(
        self,
        q: Float[jax.Array, "B T N H"],
        k: Float[jax.Array, "B S N H"],
        v: Float[jax.Array, "B S N K"],
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
    ) -> Float[jax.Array, "B T N K"] | None:
        """The call by a kernel that never holds all scores; None for operators that have none.

        It stands in for the formula unless a site reads the scores or the pattern, or the scheme has products.
        """
        return None

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
        read = [site.wanted(name) for name in ("scores", "pattern")]
        if not any(read) and not position.multiplies:
            made = self.fused(q, k, v, tokens_q, tokens_k, mask, position, params, site)
            if made is not None:
                return made
        found = site("scores", scores(q, k, tokens_q, tokens_k, position, self.scaled))
        allowed = over_heads(mask.dense(tokens_q, tokens_k))
        pattern = site("pattern", self.told_weights(found, allowed, q, tokens_q, tokens_k, params, site))
        return jnp.einsum("BNTS,BSNK->BTNK", pattern.astype(v.dtype), v)

    def step(
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
        # No row is read by another, and keys are rotated where scores are made: rows come out as they do among others.
        return self(q, k, v, tokens_q, tokens_k, mask, position, params, site)

    def state_size(self, dims: Dims) -> int:
        return 2 * dims.length * dims.heads * dims.head_size


def over_heads(mask: Bool[Mapped, "... T S"]) -> Bool[jax.Array, "... T S"]:
    """A mask as it broadcasts against scores: [T, S], or [B, 1, T, S]."""
    found = jnp.asarray(mask)
    return found[..., None, :, :] if found.ndim == 3 else found


def scores(
    q: jax.Array, k: jax.Array, tokens_q: Tokens, tokens_k: Tokens, position: Placed, scaled: bool
) -> Float[jax.Array, "B N T S"]:
    """The score of every query and key in float32, with what the scheme does to it.

    Scores are q . k / sqrt(H) if `scaled`, else q . k.
    """
    found = position.products(q, k, tokens_q, tokens_k)
    if found is None:
        q, k = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        found = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
    if scaled:
        found = found * (q.shape[-1] ** -0.5)
    bias = position.bias(tokens_q.rows(), tokens_k.columns(), q.shape[-2])
    return found if bias is None else found + bias
