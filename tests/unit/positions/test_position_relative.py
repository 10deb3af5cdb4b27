"""Vectors of relative positions: against the definition, one pair at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.positions.base import Dims, Matrix
from positionbias.positions.relative import LearnedRelative
from positionbias.tokens import sequential

HEADS, SIZE = 2, 4


def arrays(rows, columns, farthest):
    shapes = [(2, rows, HEADS, SIZE), (2, columns, HEADS, SIZE), (2 * farthest + 1, HEADS * SIZE)]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def test_products_are_those_of_keys_with_their_vectors_added():
    q, k, table = arrays(4, 6, 2)
    at_q, at_k = np.array([5, 0, 2, 3]), np.array([0, 1, 2, 3, 4, 9])
    tokens = (sequential(4, position=at_q), sequential(6, position=at_k))
    found = LearnedRelative(farthest=2).products(q, k, *tokens, {"table": table})
    for i in range(4):
        for j in range(6):
            row = 2 + max(-2, min(2, int(at_q[i] - at_k[j])))
            for head in range(HEADS):
                key = k[:, j, head] + table[row, SIZE * head : SIZE * (head + 1)]
                wanted = (q[:, i, head] * key).sum(-1)
                np.testing.assert_allclose(found[:, head, i, j], wanted, rtol=1e-4, atol=1e-5)


def test_without_vectors_it_is_the_product_of_queries_and_keys():
    q, k, table = arrays(5, 5, 3)
    found = LearnedRelative(farthest=3).products(q, k, sequential(5), sequential(5), {"table": jnp.zeros_like(table)})
    np.testing.assert_allclose(found, jnp.einsum("BTNH,BSNH->BNTS", q, k), rtol=1e-5, atol=1e-6)


def test_every_example_may_have_positions_of_its_own():
    q, k, table = arrays(3, 3, 2)
    params, both = {"table": table}, np.array([[0, 1, 2], [7, 3, 4]])
    tokens = sequential(3, position=both)
    found = LearnedRelative(farthest=2).products(q, k, tokens, tokens, params)
    for row in range(2):
        alone = sequential(3, position=both[row])
        wanted = LearnedRelative(farthest=2).products(q[row : row + 1], k[row : row + 1], alone, alone, params)
        np.testing.assert_allclose(found[row : row + 1], wanted, rtol=1e-5, atol=1e-6)


def test_what_it_declares():
    scheme = LearnedRelative(farthest=3)
    assert (scheme.embeds, scheme.rotates, scheme.biases, scheme.multiplies) == (False, False, False, True)
    declared = scheme.layer_parameters(Dims(width=16, heads=2, head_size=4, length=6))
    assert declared == {"table": Matrix((7, 8), "position", 4)}


def test_bad_arguments():
    with pytest.raises(spec.ConfigError) as error:
        spec.build("positions", "learned_relative(farthest=0)", "position")
    assert str(error.value) == "position: farthest = 0 is not allowed; allowed: a whole number from 1 to 65536."
