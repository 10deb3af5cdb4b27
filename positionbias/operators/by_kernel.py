"""Operators that the attention kernel computes; where their scores or pattern are read, the formula does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from positionbias import kernels
from positionbias.masks.base import Mask
from positionbias.operators.base import ScoreOperator, SiteFunction
from positionbias.positions.base import Parameters, Placed
from positionbias.spec import ConfigError, canonical
from positionbias.tokens import Tokens


class ByKernel(ScoreOperator):
    """A score operator that the kernel computes.

    `impl` names the driver (`python -m positionbias.kernels.explain`), None the first that can. Scores and pattern
    exist in none of them: where a site reads one of the two, or a position scheme has products of its own, the formula
    is computed as it stands.
    """

    impl: str | None

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
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        q, k = position.rotate(q, tokens_q, "query"), position.rotate(k, tokens_k, "key")
        mixed, stats = kernels.attention(q, k, v, **self._asked(tokens_q, tokens_k, mask, position, q.shape[-2]))
        return self._told(mixed, stats, tokens_k, params, site)

    def _told(
        self, mixed: jax.Array, stats: kernels.Stats, tokens_k: Tokens, params: Parameters, site: SiteFunction
    ) -> jax.Array:
        """What comes out, given what the kernel mixed and the statistics that `_asked` asks for: here of none."""
        return mixed

    @property
    def row_by_row(self) -> bool:
        # A driver that is named is asked for what it was named for; some cannot take fewer rows than keys.
        return super().row_by_row and self.impl is None

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
