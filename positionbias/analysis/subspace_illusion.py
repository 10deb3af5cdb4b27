"""Subspace illusion: whether a direction works by what reads it, or by a part of it that nothing reads."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.alignment import Taught, answers, interchanged, margins, rotated, subspaces, unit
from positionbias.analysis.base import Axes, Labels, Subject, sites
from positionbias.analysis.variables import pairs, width
from positionbias.arrays import Float, Key
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch

HIDDEN, OUTPUT = "layers.*.mlp.hidden", "layers.*.mlp.output"
LEAST = 1e-4  # of a part's length, that of the whole being 1
PARTS = ("full", "row_space", "null_space", "random", "whole")


@member("analyses", "subspace_illusion")
@dataclasses.dataclass(frozen=True)
class SubspaceIllusion(Taught):
    """Effects of a direction of an MLP's hidden layer, of its part that the MLP's output reads, and of the rest.

    Makelov et al. 2023, "Is This the Subspace You Are Looking for?" (arXiv 2311.17030): a direction v is found as by
    `das` with one dimension and its `variable`, in the hidden layer of the MLP of each layer, and split into what lies
    in the row space of W_out and what in its null space, which the model cannot feel. h becomes h + ((s - h) . u) u
    with the source's s, of u = v ("full"), of each part at unit length ("row_space", "null_space", 0 where there is
    none), of a "random" direction, and of all directions ("whole"). "effect" is the change that makes in the margin,
    the logit of the answer with the source's value minus that of the base's own, in nats, the mean over the pairs where
    the two differ; "margin" what it is before. Where "full" does much, and "row_space" far less, v is an illusion: it
    feeds a part that nothing reads into one that is always silent. "null_space" is 0 by construction. "row_norm" is the
    length of the part in the row space, at most 1.
    """

    variable: str = "answer"
    updates: int = 200
    batch: int = 32
    rate: float = 1e-2

    axes: ClassVar[Axes] = {"effect": ("layer", "part"), "row_norm": ("layer",), "margin": ()}
    shown = "effect"
    alike = (HIDDEN,)
    labels: ClassVar[Labels] = {"part": PARTS}
    draws = True

    def reads(self) -> tuple[str, ...]:
        return (HIDDEN, OUTPUT)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        learned, picked, items, own = jax.random.split(key, 4)
        names = sites(layers, HIDDEN)
        found = subspaces(subject, names, self.variable, 1, self._training(), learned)[:, 0, 0]  # [L, H]
        maps = [read_by(subject, *pair) for pair in zip(names, sites(layers, OUTPUT), strict=True)]
        row, null = (jnp.stack(part) for part in zip(*map(parts, maps, found), strict=True))
        random = jnp.stack([rotated(one, 1, found.shape[-1])[0] for one in jax.random.split(picked, len(names))])
        several = jnp.stack([found, *(unit(x) for x in (row, null)), random], axis=1)  # [L, 4, H]
        everything = (jnp.eye(found.shape[-1]), jnp.ones(found.shape[-1]))

        def one(batch: Batch, key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
            told = pairs(subject, names, self.variable, key, len(batch.query))
            differ = (told.told != told.was).astype(jnp.float32)
            before = margins(told, answers(subject, told, {}))

            def effect(layer: jax.Array, basis: tuple[jax.Array, jax.Array]) -> jax.Array:
                after = margins(told, interchanged(subject, names, told, layer, basis))
                return jnp.mean(differ * (after - before))

            def of(layer: jax.Array) -> jax.Array:
                along = jax.lax.map(lambda v: effect(layer, (v[None], jnp.ones(1))), several[layer])
                return jnp.append(along, effect(layer, everything))

            effects = jax.lax.map(of, jnp.arange(len(names)))
            return {"effect": effects, "margin": jnp.mean(differ * before), "pairs": jnp.mean(differ)}

        means = subject.averaged(subject.batch(items), one, own)
        share = means.pop("pairs")
        shares = {name: x / jnp.where(share == 0, 1.0, share) for name, x in means.items()}
        return shares | {"row_norm": jnp.linalg.norm(row, axis=-1)}


def read_by(subject: Subject, hidden: str, output: str) -> Float[jax.Array, "D H"]:
    """The linear map from one site to another, of the last row of one item."""
    batch = subject.batch(jax.random.key(0), 1)

    def written(shift: jax.Array) -> jax.Array:
        return subject.apply(batch, [output], {hidden: edits.add(shift)})[1][output][0, -1]

    return jax.jacrev(written)(jnp.zeros(width(subject, hidden)))


def parts(reader: Float[jax.Array, "D H"], vector: Float[jax.Array, "H"]) -> tuple[jax.Array, jax.Array]:
    """What of a vector of length 1 lies in the row space of a matrix, and what in its null space."""
    basis = edits.orthonormal(reader)
    row = jnp.matmul(jnp.matmul(basis, vector, precision="highest"), basis, precision="highest")
    both = (row, vector - row)
    sizes = (jnp.linalg.norm(part) for part in both)
    # What rounding leaves of nothing would else be brought to length 1.
    row, null = (jnp.where(size > LEAST, part, 0.0) for part, size in zip(both, sizes, strict=True))
    return row, null
