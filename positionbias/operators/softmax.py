"""Softmax attention, by the kernel; where its scores or pattern are read, by the formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from positionbias import kernels
from positionbias.kernels.softmax_attention import xla
from positionbias.masks.base import Mask
from positionbias.operators.base import ScoreOperator, SiteFunction
from positionbias.positions.base import Placed
from positionbias.spec import ConfigError, canonical, member
from positionbias.tokens import Tokens


def masked_softmax(found: jax.Array, allowed: jax.Array) -> jax.Array:
    """Softmax over the allowed entries of the last axis; a row with none allowed is zero, and so is its gradient."""
    return xla.masked_softmax(found, allowed)[0]


def biased(
    position: Placed, tokens_q: Tokens, tokens_k: Tokens, heads: int
) -> tuple[Callable[..., jax.Array] | None, Mapping[str, kernels.Aux]]:
    """The rule by which a scheme changes scores, and what it reads; None for a scheme without a bias."""
    if not position.biases:
        return None, {}
    table = position.table(tokens_q, tokens_k, heads)
    if table is not None:
        return lambda s, b, h, q, k, table: s + table, {"table": kernels.Relative(table)}
    names = [f"{side}_{field}" for side in ("query", "key") for field in Tokens._fields]
    kinds = [kernels.PerQuery] * len(Tokens._fields) + [kernels.PerKey] * len(Tokens._fields)
    aux = {name: kind(field) for name, kind, field in zip(names, kinds, (*tokens_q, *tokens_k), strict=True)}

    def rule(s: jax.Array, b: jax.Array, h: jax.Array, q: jax.Array, k: jax.Array, **fields: jax.Array) -> jax.Array:
        rows, columns = (Tokens(*(fields[f"{side}_{name}"] for name in Tokens._fields)) for side in ("query", "key"))
        bias = position.bias(rows, columns, s.shape[0])
        return s if bias is None else s + bias

    return rule, aux


@member("operators", "softmax")
@dataclasses.dataclass(frozen=True)
class Softmax(ScoreOperator):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1); `scaled=False` leaves out 1/sqrt(H).

    `impl` names the driver of the kernel that computes it (`python -m positionbias.kernels.explain`), None the first
    that can. Scores and pattern exist in none of them: where a site reads one of the two, or a position scheme has
    products of its own, the formula is computed as it stands.
    """

    scaled: bool = True
    impl: str | None = None

    def __post_init__(self) -> None:
        kernels.check_impl(self.impl)

    def fused(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        site: SiteFunction,
    ) -> jax.Array:
        q, k = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        mixed, stats = kernels.attention(q, k, v, **self._asked(tokens_q, tokens_k, mask, position, q.shape[-2]))
        self._told(stats, tokens_k, site)
        return mixed  # type: ignore[no-any-return]

    def _told(self, stats: kernels.Stats, tokens_k: Tokens, site: SiteFunction) -> None:
        """Take note of the statistics that `_asked` asks for: here of none."""

    def driver(
        self, q: jax.ShapeDtypeStruct, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, position: Placed, platform: str
    ) -> str | None:
        if position.multiplies:
            if self.impl is None:
                return None
            raise ConfigError(
                f"impl = {self.impl!r} reads products of queries and keys, and {canonical(position.scheme)} has its"
                " own; allowed: None."
            )
        k = jax.ShapeDtypeStruct((q.shape[0], tokens_k.length, *q.shape[2:]), q.dtype)
        asked = self._asked(tokens_q, tokens_k, mask, position, q.shape[-2])
        return kernels.choice(q, k, k, **asked, platform=platform).driver.name

    def _asked(self, tokens_q: Tokens, tokens_k: Tokens, mask: Mask, position: Placed, heads: int) -> dict[str, Any]:
        """What the kernel is asked beside queries, keys and values."""
        score, aux = biased(position, tokens_q, tokens_k, heads)
        return {
            "mask": mask,
            "tokens": (tokens_q, tokens_k),
            "score": score,
            "aux": aux,
            "scale": None if self.scaled else 1.0,
            "stats": (),
            "impl": self.impl,
        }

    def weights(self, scores: jax.Array, allowed: jax.Array) -> jax.Array:
        return masked_softmax(scores, allowed)
