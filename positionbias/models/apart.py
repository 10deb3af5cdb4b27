"""What each head reads and adds by itself, where sites ask for it: the ends of the edges between parts of a model."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from positionbias.arrays import Float
from positionbias.models.sites import Scoped

NOTHING: Mapping[str, jax.Array] = types.MappingProxyType({})


def over_heads(stream: Float[jax.Array, "B T D"], heads: int) -> Float[jax.Array, "B T N D"]:
    """The same for every head."""
    return jnp.broadcast_to(stream[:, :, None], (*stream.shape[:2], heads, stream.shape[-1]))


def read_apart(
    stream: Float[jax.Array, "B T D"],
    norm: Callable[[jax.Array], jax.Array],
    heads: int,
    site: Scoped,
    names: Iterable[str],
) -> Mapping[str, Float[jax.Array, "B T N D"]]:
    """Of each of `names` whose site `NAME_input` is asked for, what every head reads of the stream, normed.

    Heads read one array, which costs nothing, unless somebody asks: then each has a copy that passes the site.
    """
    asked = [name for name in names if site.wanted(f"{name}_input")]
    return {name: norm(site(f"{name}_input", over_heads(stream, heads))) for name in asked}


def each_added(
    mixed: Float[jax.Array, "B T N K"], weight: Float[jax.Array, "I W"] | None
) -> Float[jax.Array, "B T N W"]:
    """Each head's part in the sum that is x W of all N side by side, I = N K; without W they stay side by side."""
    heads, size = mixed.shape[2:]
    matrix = jnp.eye(heads * size) if weight is None else weight
    return jnp.einsum("BTNK,NKW->BTNW", mixed, matrix.astype(mixed.dtype).reshape(heads, size, -1))
