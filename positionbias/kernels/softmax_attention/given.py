"""What a call of attention is given, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.errors import ConfigError, unknown
from positionbias.kernels.softmax_attention.problem import STATS
from positionbias.masks.base import Mask
from positionbias.tokens import Tokens

MOST_DROPPED = 0.999
DTYPES = ("bfloat16", "float16", "float32", "float64")  # of q, k and v


def check_arrays(q: Any, k: Any, v: Any, key_bias: Any) -> None:
    """Raise ConfigError unless they are arrays that fit together."""
    for name, value in (("q", q), ("k", k), ("v", v)):
        if not are_arrays([value]):
            raise ConfigError(f"{name} is {kind_of(value)}; allowed: an array.")
    if not isinstance(key_bias, jax.Array | np.ndarray | None):
        raise ConfigError(f"key_bias is {kind_of(key_bias)}; allowed: an array, or None.")
    shapes = {"q": np.shape(q), "k": np.shape(k), "v": np.shape(v)}
    told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    kinds = {str(jnp.result_type(x)) for x in (q, k, v)}
    if len(kinds) > 1 or not kinds <= set(DTYPES):
        raise ConfigError(
            f"q, k and v are of {sorted(kinds)}; allowed: one floating type for all three, of {', '.join(DTYPES)}."
        )
    allowed = "allowed: q [B, T, N, H], k [B, S, G, H], v [B, S, G, K], N a multiple of G, none of them 0."
    if any(len(shape) != 4 or 0 in shape for shape in shapes.values()):
        raise ConfigError(f"{told} are not allowed; {allowed}")
    (b, _, n, h), (b2, s, g, h2), (b3, s2, g2, _) = shapes["q"], shapes["k"], shapes["v"]
    if not (b == b2 == b3 and h == h2 and s == s2 and g == g2 and n % g == 0):
        raise ConfigError(f"{told} do not fit together; {allowed}")
    if key_bias is not None and np.shape(key_bias) != (b, g, s):
        raise ConfigError(f"key_bias has shape {list(np.shape(key_bias))}; allowed: [B, G, S] = {[b, g, s]}.")
    if key_bias is not None and not any(jnp.issubdtype(key_bias.dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise ConfigError(f"key_bias is of {key_bias.dtype}; allowed: real numbers.")


def check_tokens(tokens: Any, mask: Any) -> None:
    """Raise ConfigError unless they are those of queries and keys, for a Mask."""
    if not isinstance(mask, Mask):
        raise ConfigError("tokens are what a Mask reads, and mask is none; allowed: a Mask, or aux for a function.")
    sides = (tokens,) if isinstance(tokens, Tokens) or not isinstance(tokens, tuple | list) else tokens
    if len(sides) != 2 or not all(isinstance(side, Tokens) for side in sides):
        told = ", ".join(type(side).__name__ for side in sides)
        raise ConfigError(f"tokens are ({told}); allowed: (Tokens, Tokens), those of the queries and of the keys.")


def check_scale(scale: Any) -> None:
    """Raise ConfigError unless it is a number that is known."""
    if isinstance(scale, jax.core.Tracer):
        raise ConfigError("scale is traced; allowed: a number that is known, and a factor in score for any other.")
    if scale is not None and not (_is_number(scale) and np.isfinite(scale)):
        raise ConfigError(f"scale = {scale!r} is not allowed; allowed: a number, or None for 1 / sqrt(H).")


def check_stats(stats: Sequence[str], normalise: bool) -> None:
    """Raise ConfigError for names that are no statistic, or none of weights that are not normalised."""
    if not isinstance(stats, Sequence):
        raise ConfigError(f"stats = {stats!r} is not allowed; allowed: a list of names, such as ['lse'].")
    if isinstance(stats, str):
        raise ConfigError(f"stats = {stats!r} is text; allowed: a list of names, such as [{stats!r}].")
    for name in stats:
        if name not in STATS:
            raise unknown("stats", "statistic", name, STATS)
    rowwise = [name for name in stats if name not in ("received", "block_mass")]
    if rowwise and not normalise:
        raise ConfigError(f"stats: {rowwise[0]!r} needs normalised weights; allowed without: 'received', 'block_mass'.")


def check_dropout(dropout: Any) -> None:
    """Raise ConfigError unless it is None, or a rate and a seed."""
    if dropout is None:
        return
    good = isinstance(dropout, tuple | list) and len(dropout) == 2 and _is_number(dropout[0])
    if not good or not 0 <= dropout[0] <= MOST_DROPPED:
        raise ConfigError(
            f"dropout = {dropout!r} is not allowed; allowed: (rate, seed), a rate from 0 to {MOST_DROPPED}."
        )
    seed = dropout[1]
    whole = are_arrays([seed]) and np.shape(seed) == () and jnp.issubdtype(seed.dtype, jnp.integer)
    if not whole and not (is_whole(seed) and -(2**31) <= seed < 2**31):
        told = f"{seed.dtype}{list(seed.shape)}" if are_arrays([seed]) else repr(seed)
        raise ConfigError(f"dropout has the seed {told}; allowed: a whole number of 32 bits, jax.random.bits(key) say.")


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def are_arrays(values: Any) -> bool:
    """Whether it is a sequence of arrays, or of what stands for them where only a driver is chosen."""
    kinds = jax.Array | np.ndarray | jax.ShapeDtypeStruct
    return isinstance(values, tuple | list) and all(isinstance(value, kinds) for value in values)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number that is known."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether it is one real number that is known."""
    if isinstance(value, jax.core.Tracer) or np.ndim(value) or not np.isrealobj(value):
        return False
    return np.issubdtype(np.asarray(value).dtype, np.number)
