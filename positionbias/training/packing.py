"""A tree of arrays as one array a type, and back: a call with a few large arrays costs the host less than with many."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from positionbias.arrays import Shaped, Tree

Packed = dict[str, Shaped[jax.Array, "..."]]


class Packing:
    """How trees like `shape` are packed; `shape` has arrays or `jax.ShapeDtypeStruct`s as leaves."""

    def __init__(self, shape: Tree) -> None:
        leaves, self._tree = jax.tree.flatten(shape)
        self._shapes = [leaf.shape for leaf in leaves]
        self._types = [str(leaf.dtype) for leaf in leaves]

    def pack(self, tree: Tree) -> Packed:
        """One vector for each type of the tree's leaves."""
        parts: dict[str, list[jax.Array]] = {}
        for leaf, kind in zip(jax.tree.leaves(tree), self._types, strict=True):
            parts.setdefault(kind, []).append(leaf.reshape(-1))
        return {kind: jnp.concatenate(vectors) for kind, vectors in parts.items()}

    def unpack(self, packed: Packed) -> Tree:
        """The tree again."""
        starts = dict.fromkeys(packed, 0)
        leaves = []
        for shape, kind in zip(self._shapes, self._types, strict=True):
            start, starts[kind] = starts[kind], starts[kind] + math.prod(shape)
            leaves.append(packed[kind][start : starts[kind]].reshape(shape))
        return jax.tree.unflatten(self._tree, leaves)
