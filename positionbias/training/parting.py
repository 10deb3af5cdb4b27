"""A replica's state in parts: every device of the mesh axis `fsdp` keeps a slice of each array.

An array of n numbers is laid out flat and cut into as many slices as there are devices, the last filled up with zeros;
scalars stay whole. Rules that work on every number by itself work on slices as they do on arrays.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from positionbias.arrays import Float, Tree
from positionbias.replicas import Layout

GATHERED = "gathered"  # name of arrays put together, which the backward pass gathers again rather than keeps


class Parting:
    """How trees like `shape` (arrays or `jax.ShapeDtypeStruct`s) are parted; everything inside `Layout.over`."""

    def __init__(self, shape: Tree, layout: Layout) -> None:
        self._shapes = jax.tree.map(lambda leaf: leaf.shape, shape)
        self._count, self.layout = layout.fsdp, layout
        self.parts = shape if self._count == 1 else jax.tree.map(self._part, shape)

    def _size(self, leaf: Any) -> int:
        return -(-math.prod(leaf.shape) // self._count)

    def _part(self, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self._size(leaf),) if leaf.shape else (), leaf.dtype)

    def part(self, tree: Tree) -> Tree:
        """Of each array the slice that this device keeps."""
        if self._count == 1:
            return tree
        at = jax.lax.axis_index("fsdp")

        def one(leaf: jax.Array) -> jax.Array:
            if leaf.ndim == 0:
                return leaf
            size = self._size(leaf)
            flat = jnp.pad(leaf.reshape(-1), (0, size * self._count - leaf.size))
            return flat.reshape(self._count, size)[at]

        return jax.tree.map(one, tree)

    def whole(self, parts: Tree, *where: str) -> Tree:
        """The arrays of slices; `where` is the path of these in the tree that was parted, if they are not all of it."""
        if self._count == 1:
            return parts
        shapes: Any = self._shapes
        for key in where:
            shapes = shapes[key]

        def one(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            if not shape:
                return leaf
            flat = jax.lax.all_gather(leaf, "fsdp", tiled=True)
            return checkpoint_name(flat[: math.prod(shape)].reshape(shape), GATHERED)

        return jax.tree.map(one, parts, shapes)

    def summed(self, grads: Tree, metrics: Tree) -> tuple[Tree, Tree]:
        """Gradients by slices and metrics, those of this device's sequences, over all devices that share a batch."""
        if self._count == 1:
            return self.layout.summed((grads, metrics))
        # The gradient of a gathered array has been summed over `fsdp`, and cut, by what gathering transposes to.
        leaves, shape = jax.tree.flatten(grads)
        kept = self.layout.summed([x for x in leaves if x.ndim], ("data",))
        scalars, metrics = self.layout.summed(([x for x in leaves if not x.ndim], metrics))
        return jax.tree.unflatten(shape, [(kept if x.ndim else scalars).pop(0) for x in leaves]), metrics

    def norm(self, parts: Tree) -> Float[jax.Array, ""]:
        """The norm of the arrays of slices."""
        if self._count == 1:
            return optax.tree.norm(parts)
        leaves = jax.tree.leaves(parts)
        kept = sum(jnp.sum(jnp.square(x)) for x in leaves if x.ndim)
        return jnp.sqrt(jax.lax.psum(kept, "fsdp") + sum(jnp.square(x) for x in leaves if not x.ndim))
