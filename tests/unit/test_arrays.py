"""Sums and maxima that are written so that XLA on CPUs is quick give what the plain ones do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.arrays import largest, rows_times


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 64, 130])
def test_the_largest_of_a_row_is_found_wherever_it_stands(length: int) -> None:
    place = np.arange(length)
    x = -1.0 - np.abs(place[:, None] - place)  # row i is largest at i
    found = jax.jit(largest)(jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(found, np.full((length, 1), -1.0, np.float32))


def test_the_largest_is_nan_where_one_is() -> None:
    x = np.zeros((20, 20), np.float32)
    np.fill_diagonal(x, np.nan)
    assert np.isnan(largest(jnp.asarray(x))).all()


def test_the_largest_has_no_gradient_and_goes_by_replicas() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 40)), jnp.float32)
    assert not np.any(jax.grad(lambda x: jnp.sum(largest(x)))(x))
    np.testing.assert_array_equal(jax.vmap(largest)(x), np.max(np.asarray(x), axis=-1, keepdims=True))


def test_rows_are_multiplied_in_their_own_type() -> None:
    x, matrix = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.full((4, 5), 2.0)
    found = rows_times(x, matrix)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.full((2, 3, 5), 8.0))
