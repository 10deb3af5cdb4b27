"""Attention as its formula, in float64 and with T x S arrays: what every driver is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Mapped
from positionbias.kernels.softmax_attention.problem import NOTHING_SEEN, Stats


def attention_reference(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S G H"],
    v: Float[jax.Array, "B S G K"],
    allowed: Bool[Mapped, "B|1 N|1 T S"],
    score: Callable[[jax.Array], jax.Array] = lambda s: s,
    scale: float | None = None,
    keep: Float[Mapped, "B N T S"] | None = None,
    normalise: bool = True,
    block_sizes: tuple[int, int] = (128, 128),
) -> tuple[Float[jax.Array, "B T N K"], Stats]:
    """Outputs and all statistics; `score` maps the scaled scores [B, N, T, S], `keep` multiplies the weights."""
    q, k, v = (jnp.asarray(x, jnp.float64) for x in (q, k, v))
    repeats = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    s = score(jnp.einsum("BTNH,BSNH->BNTS", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale))
    allowed = jnp.broadcast_to(jnp.asarray(allowed), s.shape)
    e = jnp.where(allowed, jnp.exp(jnp.where(allowed, s, 0.0)), 0.0)
    total = e.sum(axis=-1)
    seen = total > 0
    lse = jnp.where(seen, jnp.log(jnp.where(seen, total, 1.0)), NOTHING_SEEN)
    a = e / jnp.where(seen, total, 1.0)[..., None] if normalise else e
    log_a = jnp.log(jnp.where(a > 0, a, 1.0))
    o = jnp.einsum("BNTS,BSNK->BTNK", a if keep is None else a * keep, v)
    stats = Stats(lse, a.sum(axis=2), -(a * log_a).sum(axis=-1), a @ jnp.arange(a.shape[-1]), _masses(a, block_sizes))
    return o, stats


def _masses(a: Any, sizes: tuple[int, int]) -> Any:
    rows = [a[:, :, i : i + sizes[0]].sum(axis=2) for i in range(0, a.shape[2], sizes[0])]
    return jnp.stack(
        [
            jnp.stack([row[:, :, j : j + sizes[1]].sum(axis=2) for j in range(0, a.shape[3], sizes[1])], -1)
            for row in rows
        ],
        axis=2,
    )
