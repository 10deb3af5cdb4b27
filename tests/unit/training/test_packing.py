"""Trees to one array a type and back."""

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.training.packing import Packing

TREE = {
    "a": jnp.arange(6.0).reshape(2, 3),
    "b": (jnp.int32(7), jnp.full((2,), 0.5)),
    "c": jnp.zeros((0, 4)),
    "d": jnp.ones((1, 1), jnp.bfloat16),
}


def test_one_array_a_type_in_the_order_of_the_leaves():
    packed = Packing(TREE).pack(TREE)
    assert {kind: x.shape for kind, x in packed.items()} == {"float32": (8,), "int32": (1,), "bfloat16": (1,)}
    assert packed["float32"].tolist() == [0, 1, 2, 3, 4, 5, 0.5, 0.5]


def test_the_tree_comes_back_to_the_bit():
    packing = Packing(jax.eval_shape(lambda: TREE))
    back = packing.unpack(packing.pack(TREE))
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(TREE), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
