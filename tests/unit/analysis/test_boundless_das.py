"""The boundary, and a planted boolean found with few directions."""

import jax
import numpy as np

from positionbias.analysis.boundless_das import BoundlessDas, boundary


def test_the_boundary_is_the_product_of_both_sigmoids():
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    place = np.arange(6) + 0.5
    expected = sigmoid(place / 0.7) * sigmoid((0.4 * 6 - place) / 0.7)
    np.testing.assert_allclose(boundary(6, 0.4, 0.7), expected, rtol=1e-5)
    np.testing.assert_allclose(boundary(6, 0.5, 0.01), [1, 1, 1, 0, 0, 0], atol=1e-6)


def test_the_planted_boolean_is_found_with_few_directions(planted):
    """Of twenty, the half of which are interchanged at first; those that are left carry it."""
    search = BoundlessDas(variable="condition", updates=300, batch=64)
    found = jax.jit(lambda: search.measure(planted, [0], jax.random.key(0)))()
    assert found["iia"][0] > 0.95
    assert 1 <= found["size"][0] <= 4
    # Below chance: the more directions are left, the more of the source's objects they bring.
    assert found["shuffled"][0] < 0.55
    assert found["size_shuffled"][0] > found["size"][0]
