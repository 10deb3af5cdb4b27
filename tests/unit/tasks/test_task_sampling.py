"""Samplers without replacement: uniform, and shown to be so by a test that a biased sampler fails."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from positionbias.tasks import sampling

DRAWS = 12000
LEVEL = 1e-4


def draw(sampler, seed=0):
    return np.asarray(jax.jit(jax.vmap(sampler))(jax.random.split(jax.random.key(seed), DRAWS)))


def outcome_p_value(rows, outcomes):
    """Chi-square p-value of equally likely outcomes."""
    counts = dict.fromkeys(outcomes, 0)
    for row in map(tuple, rows.tolist()):
        counts[row] += 1
    return stats.chisquare(list(counts.values())).pvalue


def test_permutation_every_order_is_equally_likely():
    rows = draw(lambda key: sampling.permutation(key, 4))
    assert outcome_p_value(rows, itertools.permutations(range(4))) > LEVEL


@pytest.mark.parametrize(("count", "size"), [(1, 5), (2, 5), (3, 4), (4, 4)])
def test_distinct_every_ordered_choice_is_equally_likely(count, size):
    rows = draw(lambda key: sampling.distinct(key, count, size))
    assert outcome_p_value(rows, itertools.permutations(range(size), count)) > LEVEL


def test_the_uniformity_test_catches_floyd_without_the_shuffle():
    def unshuffled(key):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "permutation", lambda _, size: jnp.arange(size))
            return sampling.distinct(key, 2, 5)

    assert outcome_p_value(draw(unshuffled), itertools.permutations(range(5), 2)) < LEVEL


def test_the_uniformity_test_catches_a_naive_swap_shuffle():
    def naive(key):
        swap = jax.random.randint(key, (3,), 0, 3)
        order = jnp.arange(3)
        for i in range(3):
            order = order.at[i].set(order[swap[i]]).at[swap[i]].set(order[i])
        return order

    assert outcome_p_value(draw(naive), itertools.permutations(range(3))) < LEVEL


@pytest.mark.parametrize("size", [1, 2, 8, sampling.RANKS_UP_TO, sampling.RANKS_UP_TO + 1])
def test_permutation_holds_every_number_once(size):
    rows = np.asarray(jax.vmap(lambda key: sampling.permutation(key, size))(jax.random.split(jax.random.key(1), 8)))
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(size), (8, 1)))


def test_equal_random_bits_still_give_a_permutation(monkeypatch):
    monkeypatch.setattr(jax.random, "bits", lambda key, shape: jnp.array([5, 5, 1, 5], jnp.uint32))
    assert sampling.permutation(jax.random.key(0), 4).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize(("count", "size"), [(8, 64), (64, 2048), (32, 8192), (7, 7)])
def test_distinct_numbers_are_distinct_and_in_range(count, size):
    keys = jax.random.split(jax.random.key(2), 64)
    rows = np.asarray(jax.vmap(lambda key: sampling.distinct(key, count, size))(keys))
    assert rows.dtype == np.int32
    assert rows.min() >= 0
    assert rows.max() < size
    assert all(len(set(row)) == count for row in rows.tolist())


@pytest.mark.parametrize(("count", "size"), [(0, 4), (5, 4)])
def test_distinct_refuses_what_cannot_be_drawn(count, size):
    with pytest.raises(ValueError, match=f"cannot draw {count} distinct numbers of {size}"):
        sampling.distinct(jax.random.key(0), count, size)
