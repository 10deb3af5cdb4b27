"""Masks drawn from a seed: what a draw is, what it covers with depth, and how even it is."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.masks.base import reach
from positionbias.tokens import sequential


def mask(text):
    return spec.build("masks", text, "mask")


def dense(text, length):
    tokens = sequential(length)
    return np.asarray(mask(text).dense(tokens, tokens))


# --------------------------------------------------------------------------------------------- permutation windows


@pytest.mark.parametrize("circular", [False, True])
def test_a_window_over_a_shuffle_is_a_window_up_to_the_order_of_tokens(circular):
    size, width = 40, 5
    tokens = sequential(size)
    bound = mask(f"random_permutation_window({width}, seed=3, circular={circular})").bind(tokens, tokens)
    order = np.argsort(bound.rank)
    np.testing.assert_array_equal(np.sort(bound.rank), np.arange(size))
    assert (bound.rank != np.arange(size)).any()
    away = abs(np.subtract.outer(np.arange(size), np.arange(size)))
    wanted = np.minimum(away, size - away) < width if circular else away < width
    np.testing.assert_array_equal(bound.dense(tokens, tokens)[np.ix_(order, order)], wanted)


def test_seeds_shuffle_otherwise_and_one_seed_the_same_everywhere():
    first = dense("random_permutation_window(4)", 64)
    assert (first != dense("random_permutation_window(4, seed=1)", 64)).any()
    np.testing.assert_array_equal(first, dense("random_permutation_window(4)", 64))
    whole, permutation = mask("random_permutation_window(4)"), sequential(96)
    part = permutation.cut(32, 96)
    np.testing.assert_array_equal(whole.dense(part, part), first)
    traced = jax.jit(lambda t: whole.dense(t, t))(jax.tree.map(jnp.asarray, part))
    np.testing.assert_array_equal(traced, first)


def test_a_wide_window_is_all():
    assert dense("random_permutation_window(9)", 9).all()
    assert dense("random_permutation_window(5, circular=True)", 9).all()


@pytest.mark.parametrize("text", ["random_permutation_window(2)", "causal & ~random_permutation_window(2)"])
def test_it_is_for_self_attention_only(text):
    tokens = sequential(8)
    for q, k in [(tokens.cut(0, 3), tokens), (tokens.cut(0, 4), tokens.cut(4, 8))]:
        with pytest.raises(spec.ConfigError) as caught:
            mask(text).dense(q, k)
        assert str(caught.value) == (
            f"random_permutation_window shuffles one sequence, but {q.length} queries look at {k.length} keys of"
            " another; allowed: another mask for cross attention."
        )


def layered(pattern, layers, size):
    """What `layers` layers reach, each with a seed of its own."""
    return reach([dense(pattern.format(seed=seed), size) for seed in range(layers)])


def test_causal_shuffles_alone_leave_pairs_out_and_a_window_beside_them_does_not():
    """64 tokens, width 4: neighbours that no layer drew adjacent stay apart at any depth; with a window 4 layers do."""
    size, causal = 64, np.tri(64, dtype=bool)
    alone = "causal & random_permutation_window(4, seed={seed})"
    one_seen = [dense(alone.format(seed=seed), size) for seed in range(30)]
    drawn = np.any([one.diagonal(-1) for one in one_seen], axis=0)
    found = reach(one_seen)
    np.testing.assert_array_equal(found.diagonal(-1), drawn, "i - 1 reaches i only where a layer drew them adjacent")
    assert not drawn.all()
    together = "causal & (random_permutation_window(4, seed={seed}) | sliding_window(4))"
    assert [bool((layered(together, n, size) == causal).all()) for n in range(1, 6)] == [False] * 3 + [True] * 2
    window = [dense("causal & sliding_window(4)", size)]
    assert [n for n in (5, 20, 21, 22) if (reach(window * n) == causal).all()] == [21, 22]


# --------------------------------------------------------------------------------------------------- random graphs


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_share_of_pairs_is_the_probability(p, seed):
    size = 200
    others = ~np.eye(size, dtype=bool)
    share = dense(f"random_graph({p}, seed={seed})", size)[others].mean()
    assert abs(share - p) <= 4 * np.sqrt(p * (1 - p) / others.sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_columns_seeds_and_directions_are_not_correlated(seed):
    size = 200
    found = dense(f"random_graph(0.5, seed={seed})", size)
    other = dense(f"random_graph(0.5, seed={seed + 1})", size)
    signs = np.where(found, 1.0, -1.0)
    np.fill_diagonal(signs, 0)
    apart = ~np.eye(size, dtype=bool)
    for one, two in [(signs, signs), (signs.T, signs.T), (signs, signs.T), (signs, np.where(other, 1.0, -1.0))]:
        # 40,000 means of 200 signs, of standard error 1/sqrt(200): none is beyond 6 of these, and their spread is right
        correlation = (one @ two.T / size)[apart]
        assert abs(correlation).max() < 6 / np.sqrt(size)
        assert 0.95 < correlation.std() * np.sqrt(size) < 1.05
    counts = found.sum(axis=1), found.sum(axis=0)
    for count in counts:
        assert 0.8 < count.std() / np.sqrt(size / 4) < 1.2


def test_another_seed_is_another_graph():
    away = ~np.eye(200, dtype=bool)
    for seed in (1, 2, 10**9):
        same = dense("random_graph(0.5)", 200) == dense(f"random_graph(0.5, seed={seed})", 200)
        assert abs(same[away].mean() - 0.5) < 4 * 0.5 / np.sqrt(away.sum())


def test_a_shift_of_indices_is_another_graph():
    tokens = sequential(300)
    graph = mask("random_graph(0.5)")
    first = graph.dense(tokens.cut(0, 200), tokens.cut(0, 200))
    later = graph.dense(tokens.cut(100, 300), tokens.cut(100, 300))
    np.testing.assert_array_equal(later[:100, :100], first[100:, 100:])
    away = ~np.eye(200, dtype=bool)
    assert abs((first == later)[away].mean() - 0.5) < 4 * 0.5 / np.sqrt(away.sum())


def test_it_is_the_same_a_pair_at_a_time_and_nothing_overflows():
    tokens = sequential(12, index=np.arange(12, dtype=np.int32) * 178956970)  # up to 2^31 - 2
    graph = mask("random_graph(0.4, seed=5)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = graph.dense(tokens, tokens)
        one = [[graph.allowed(tokens.cut(i, i + 1), tokens.cut(j, j + 1))[0] for j in range(12)] for i in range(12)]
        scalars = [type(tokens)(*(x[i] for x in tokens)) for i in range(12)]
        np.testing.assert_array_equal(one, whole)
        np.testing.assert_array_equal([[graph.allowed(q, k) for k in scalars] for q in scalars], whole)
    np.testing.assert_array_equal(jax.jit(graph.dense)(*[jax.tree.map(jnp.asarray, tokens)] * 2), whole)


def test_more_edges_keep_those_there_were():
    few, more = dense("random_graph(0.2)", 64), dense("random_graph(0.6)", 64)
    assert (more | ~few).all()
