"""Edits: what to do with the value of a site, of which heads and which rows.

    run.apply(batch, edit={"layers.1.attention.heads": edits.zero(heads=3)})
    run.apply(batch, edit={"layers.0.stream": edits.replace(other["layers.0.stream"], rows=batch.query)})

`heads` are numbers of heads, one or several, or booleans [N]. `rows` are rows of the sequence: numbers that all
examples share, one or several, or [B, n], each example's own, of which those below 0 are none (as in `batch.evidence`);
or booleans [T] or [B, T]. In `scores` and `pattern` rows are those of queries. Without them all of a site is edited.
Values, rows and heads may be traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float
from positionbias.errors import ConfigError

# Where a site has heads and rows, by the last part of its name; the others have rows at 1, if any, and no heads.
HEADS = {"query": 2, "key": 2, "value": 2, "heads": 2, "scores": 1, "pattern": 1}
HEADS |= dict.fromkeys(("query_input", "key_input", "value_input", "head_outputs"), 2)
ROWS = {"scores": 2, "pattern": 2}


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """`change` of a site's value, where `heads` and `rows` say."""

    change: Callable[[jax.Array], jax.Array]
    heads: Any = None
    rows: Any = None
    only: tuple[str, ...] = ()  # last parts of the names of sites that have what it changes; () for any

    def of(self, name: str, value: jax.Array) -> jax.Array:
        """The value of the site `name` as it is passed on. Raises ConfigError for heads or rows it has not."""
        kind = name.rpartition(".")[2]
        if self.only and kind not in self.only:
            raise ConfigError(f"edit[{name!r}]: the site has nothing of the kind; allowed: {', '.join(self.only)}.")
        try:
            made = jnp.broadcast_to(jnp.asarray(self.change(value), value.dtype), value.shape)
        except (TypeError, ValueError) as error:
            if "broadcast" not in str(error):
                raise
            allowed = f"what broadcasts against the site, {value.shape}"
            raise ConfigError(f"edit[{name!r}]: its values are of another shape; allowed: {allowed}.") from error
        where: Any = True
        if self.heads is not None:
            if kind not in HEADS:
                raise ConfigError(f"edit[{name!r}]: heads are told; allowed: of {', '.join(HEADS)} only.")
            axis = HEADS[kind]
            chosen = _chosen(f"edit[{name!r}]: heads", self.heads, value.shape[axis], most=1)
            where = where & _along(chosen, value.ndim, (axis,))
        if self.rows is not None:
            axis = ROWS.get(kind, 1)
            if value.ndim <= axis:
                raise ConfigError(f"edit[{name!r}]: rows are told; allowed: of sites that have rows.")
            chosen = _chosen(f"edit[{name!r}]: rows", self.rows, value.shape[axis], most=2)
            where = where & _along(chosen, value.ndim, (0, axis)[-chosen.ndim :])
        return made if where is True else jnp.where(where, made, value)


def replace(value: Any, *, heads: Any = None, rows: Any = None) -> Edit:
    """`value` in place of what is there: of another batch or run, recorded at the same site, to patch."""
    return Edit(lambda was: jnp.asarray(value), heads, rows)


def add(value: Any, *, heads: Any = None, rows: Any = None) -> Edit:
    """`value` more."""
    return Edit(lambda was: was + value, heads, rows)


def scale(by: Any, *, heads: Any = None, rows: Any = None) -> Edit:
    """`by` times what is there."""
    return Edit(lambda was: was * by, heads, rows)


def zero(*, heads: Any = None, rows: Any = None) -> Edit:
    """Nothing."""
    return Edit(jnp.zeros_like, heads, rows)


def mean(*, heads: Any = None, rows: Any = None) -> Edit:
    """The mean over the batch, row by row: what a site tells of this example is gone (mean ablation)."""
    return Edit(lambda was: jnp.mean(was, axis=0, keepdims=True), heads, rows)


def resample(by: int = 1, *, heads: Any = None, rows: Any = None) -> Edit:
    """What the example `by` places further in the batch has, the first ones after the last (resample ablation)."""
    return Edit(lambda was: jnp.roll(was, -by, axis=0), heads, rows)


def project_out(
    directions: Float[jax.Array, "n D"] | Float[jax.Array, "D"], *, heads: Any = None, rows: Any = None
) -> Edit:
    """What is there, but for its part in the span of `directions` of the last axis, which need not be orthogonal."""
    basis = orthonormal(jnp.atleast_2d(jnp.asarray(directions)))
    return Edit(lambda was: was - (was @ basis.T) @ basis, heads, rows)


def interchange(
    value: Any,
    basis: Float[jax.Array, "n D"],
    weights: Float[jax.Array, "n"] | float = 1.0,
    *,
    heads: Any = None,
    rows: Any = None,
) -> Edit:
    """What is there, with `value` in its place along an orthonormal `basis` of some of the last axis.

    Of each direction a share: with `weights` m and the basis B it is x + B' diag(m) B (value - x).
    """

    def change(was: jax.Array) -> jax.Array:
        return was + ((jnp.asarray(value) - was) @ basis.T * weights) @ basis

    return Edit(change, heads, rows)


def orthonormal(vectors: Float[jax.Array, "n D"]) -> Float[jax.Array, "n D"]:
    """An orthonormal basis of their span, by Gram-Schmidt, with 0 for those that others before them span already."""
    told = jnp.asarray(vectors, jnp.float32)

    def next_one(i: int, basis: jax.Array) -> jax.Array:
        left = told[i]
        for _ in range(2):  # the second time for what rounding has left
            left = left - jnp.matmul(jnp.matmul(basis, left, precision="highest"), basis, precision="highest")
        size = jnp.linalg.norm(left)
        other = size > 1e-5 * jnp.linalg.norm(told[i])  # than those before span already
        return basis.at[i].set(jnp.where(other, left / jnp.where(other, size, 1.0), 0.0))

    return jax.lax.fori_loop(0, len(told), next_one, jnp.zeros_like(told))


def restrict(
    allowed: Bool[jax.Array, "... T S"], *, renormalise: bool = True, heads: Any = None, rows: Any = None
) -> Edit:
    """Attention along `allowed` pairs only, [T, S], [B, T, S] or [B, N, T, S]: an edit of a `pattern`.

    The weights that stay are divided by their sum, as under a mask that hides the others, for a softmax; without
    `renormalise` they are as they were. A row that is left nothing weighs nothing.
    """

    def change(was: jax.Array) -> jax.Array:
        seen = jnp.asarray(allowed)
        left = jnp.where(seen[:, None] if seen.ndim == 3 else seen, was, 0.0)
        if not renormalise:
            return left
        total = jnp.sum(left, axis=-1, keepdims=True)
        return left * jnp.sum(was, axis=-1, keepdims=True) / jnp.where(total == 0, 1.0, total)

    return Edit(change, heads, rows, ("pattern",))


def _chosen(field: str, told: Any, size: int, most: int) -> Bool[jax.Array, "..."]:
    """Booleans [..., size] of what is told as booleans or as numbers."""
    what = told if isinstance(told, jax.Array) else np.asarray(told)
    if what.dtype == bool:
        if not 1 <= what.ndim <= most or what.shape[-1] != size:
            raise ConfigError(f"{field}: booleans of shape {what.shape}; allowed: {size} of them.")
        return jnp.asarray(what)
    if not jnp.issubdtype(what.dtype, jnp.integer) or what.ndim > most:
        raise ConfigError(f"{field}: {what.dtype} of shape {what.shape} is not allowed; allowed: whole numbers.")
    if isinstance(what, np.ndarray) and what.size and what.max() >= size:
        raise ConfigError(f"{field}: {what.max()} is not allowed; allowed: 0 to {size - 1}.")
    numbers = jnp.atleast_1d(jnp.asarray(what))
    return jnp.any(numbers[..., None] == jnp.arange(size), axis=-2)


def _along(chosen: jax.Array, ndim: int, axes: tuple[int, ...]) -> jax.Array:
    """With its axes at `axes` of `ndim`."""
    shape = [1] * ndim
    for axis, size in zip(axes, chosen.shape, strict=True):
        shape[axis] = size
    return chosen.reshape(shape)
