"""Softmax under a mask of the operator's own beside the layer's: what operators that are named for their mask share."""

from __future__ import annotations

import jax

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask
from positionbias.operators.base import SiteFunction, reasons
from positionbias.operators.by_kernel import ByKernel
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Parameters, Placed
from positionbias.tokens import Tokens


class OwnMask(ByKernel):
    """Softmax where both the layer's mask and `own` let a query see a key; one sequence with itself."""

    family = "sparse attention"
    patterns = frozenset({"noncausal_self", "causal_self"})
    lacks = reasons(cross="its mask is laid around each query's own place, and another sequence has none for it")

    @property
    def own(self) -> Mask:
        """The operator's mask; ConfigError for arguments that it cannot be made of."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.own is not None

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
        return super().__call__(q, k, v, tokens_q, tokens_k, self._both(mask, tokens_k), position, params, site)

    def weights(self, scores: jax.Array, allowed: Mapped) -> jax.Array:
        return masked_softmax(scores, allowed)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        return allowed & self.own.dense(tokens_q, tokens_k)

    def driver(
        self, q: jax.ShapeDtypeStruct, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, position: Placed, platform: str
    ) -> str | None:
        return super().driver(q, tokens_q, tokens_k, self._both(mask, tokens_k), position, platform)

    def _both(self, mask: Mask, tokens: Tokens) -> Mask:
        # Bound to the whole sequence, as the layer's is where fewer rows are asked.
        return mask & self.own.bind(tokens, tokens)
