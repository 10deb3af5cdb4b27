"""Attention rollout: how much of each input position a row of every layer is made of, by attention alone."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, evenly, last_rows, patterns
from positionbias.arrays import Float, Key
from positionbias.spec import member
from positionbias.tasks.base import Batch


def rolled(attention: Float[jax.Array, "L T T"], residual: bool = False) -> Float[jax.Array, "L T T"]:
    """P_l = A_l P_(l-1) with P_0 = 1, after every layer; with `residual` A_l is (A_l + 1) / 2, over its rows' sums."""

    def step(before: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        if residual:
            a = a + jnp.eye(len(a))
            a = a / jnp.sum(a, axis=-1, keepdims=True)
        after = jnp.matmul(a, before, precision="highest")
        return after, after

    return jax.lax.scan(step, jnp.eye(attention.shape[-1]), attention)[1]


@member("analyses", "rollout")
@dataclasses.dataclass(frozen=True)
class Rollout(Analysis):
    """Share of each input position in the row of the last answer, by products of attention (Abnar and Zuidema 2020).

    arXiv 2005.00928: P_l = A_l P_(l-1), heads averaged. With `residual` A_l is (A_l + 1) / 2 over its rows' sums, half
    of a row being the row itself; without, as Wu et al. (2025, arXiv 2502.01951) and `theory` have it, values count
    alone. "influence" is P_l of that row after every layer, "source" its mean input position; "even" and "even_source"
    are those of attention that is even over all that a row gives any weight: what theory has for the mask alone.
    """

    residual: bool = False

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("influence", "even"), ("layer", "position")),
        **dict.fromkeys(("source", "even_source"), ("layer",)),
    }
    shown = "influence"
    whole = True

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> dict[str, jax.Array]:
            attention = jnp.mean(patterns(subject, layers, batch), axis=2)  # [L, B, T, T]
            rows = last_rows(subject, batch)[:, None, None, None]

            def last(attention: jax.Array) -> jax.Array:
                made = jax.vmap(lambda a: rolled(a, self.residual), in_axes=1)(attention)  # [B, L, T, T]
                return jnp.mean(jnp.take_along_axis(made, rows, axis=2)[:, :, 0], axis=0)

            return {"influence": last(attention), "even": last(evenly(attention))}

        found = subject.averaged(subject.batch(key), one)
        index = jnp.arange(found["even"].shape[-1], dtype=jnp.float32)
        return found | {"source": found["influence"] @ index, "even_source": found["even"] @ index}
