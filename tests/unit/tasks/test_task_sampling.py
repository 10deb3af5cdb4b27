"""Samplers without replacement: uniform or by weight, and shown to be so by a test that a biased sampler fails."""

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
    rows = np.asarray(
        jax.jit(jax.vmap(lambda key: sampling.permutation(key, size)))(jax.random.split(jax.random.key(1), 8))
    )
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(size), (8, 1)))


def test_equal_random_bits_still_give_a_permutation(monkeypatch):
    monkeypatch.setattr(jax.random, "bits", lambda key, shape: jnp.array([5, 5, 1, 5], jnp.uint32))
    assert sampling.permutation(jax.random.key(0), 4).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize(("count", "size"), [(8, 64), (64, 2048), (32, 8192), (7, 7)])
def test_distinct_numbers_are_distinct_and_in_range(count, size):
    keys = jax.random.split(jax.random.key(2), 64)
    rows = np.asarray(jax.jit(jax.vmap(lambda key: sampling.distinct(key, count, size)))(keys))
    assert rows.dtype == np.int32
    assert rows.min() >= 0
    assert rows.max() < size
    assert all(len(set(row)) == count for row in rows.tolist())


@pytest.mark.parametrize(("count", "size"), [(0, 4), (5, 4)])
def test_distinct_refuses_what_cannot_be_drawn(count, size):
    with pytest.raises(ValueError, match=f"cannot draw {count} distinct numbers of {size}"):
        sampling.distinct(jax.random.key(0), count, size)


def one_after_another(count, weights):
    """The probability of every ordered choice, each draw in proportion to the weights that are left."""
    law = {}
    for order in itertools.permutations(range(len(weights)), count):
        law[order], left = 1.0, sum(weights)
        for number in order:
            law[order] *= weights[number] / left
            left -= weights[number]
    return law


WEIGHTS = (1.0, 0.5, 1.5, 0.25, 3.0)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_by_weight_follows_the_law_of_successive_draws(count):
    law = one_after_another(count, WEIGHTS)
    rows = draw(lambda key: sampling.by_weight(key, count, WEIGHTS))
    assert rows.dtype == np.int32
    counts = dict.fromkeys(law, 0)
    for row in map(tuple, rows.tolist()):
        counts[row] += 1
    expected = DRAWS * np.array(list(law.values()))
    kept = expected >= 5
    seen = np.array(list(counts.values()))
    pooled = [*seen[kept], seen[~kept].sum()] if (~kept).any() else seen
    wanted = [*expected[kept], expected[~kept].sum()] if (~kept).any() else expected
    assert stats.chisquare(pooled, wanted).pvalue > LEVEL


def test_a_rare_number_is_drawn_as_rarely_as_it_should():
    weights = (1.0, *[1e-10] * 1000)  # all the others together once in 10 million draws
    first = jax.jit(lambda keys: jax.lax.map(lambda key: sampling.by_weight(key, 1, weights)[0], keys, batch_size=2048))
    assert not np.asarray(first(jax.random.split(jax.random.key(0), 2**16))).any()


def test_scattered_every_placing_is_equally_likely():
    rows = draw(lambda key: sampling.scattered(key, 2, 3, 3))
    placings = [(i, j + 2) for i, j in itertools.combinations(range(5), 2)]
    assert outcome_p_value(rows, placings) > LEVEL
    assert sampling.scattered(jax.random.key(0), 3, 2, 0).tolist() == [0, 2, 4]


@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 1.0), (100.0, 1.0, 0.01), tuple(1 / g for g in range(1, 8))])
def test_shares_by_weight_are_the_enumerated_ones(weights):
    for count in range(1, len(weights) + 1):
        shares = np.zeros(len(weights))
        for order, probability in one_after_another(count, weights).items():
            shares[list(order)] += probability / count
        np.testing.assert_allclose(sampling.shares_by_weight(count, weights), shares, rtol=1e-9)


@pytest.mark.parametrize("count", [2, 50, 199])
def test_shares_of_many_numbers(count):
    size = 200
    np.testing.assert_allclose(sampling.shares_by_weight(count, (2.0,) * size), np.full(size, 1 / size), rtol=1e-9)
    shares = count * sampling.shares_by_weight(count, tuple(g**-0.99 for g in range(1, size + 1)))
    assert shares.max() <= 1 + 1e-9  # a probability without having been made one
    assert (np.diff(shares) <= 1e-9).all()
