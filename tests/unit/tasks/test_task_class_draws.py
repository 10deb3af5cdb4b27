"""Draws of classes against their law, enumerated."""

import itertools
from collections import Counter, defaultdict

import jax
import numpy as np
import pytest
from scipy import stats

from positionbias.tasks.class_draws import ClassDraws

DRAWS = 6000
LEVEL = 1e-4  # of the chi-square tests; seeds are fixed


def drawn(draw):
    """How often each tuple comes, of many draws."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return Counter(map(tuple, np.asarray(jax.jit(jax.vmap(draw))(keys)).tolist()))


def follows(found, wanted):
    """Whether the counts are of that law, and none is of what cannot be."""
    kept = [key for key, share in wanted.items() if share]
    return set(found) <= set(kept) and (
        stats.chisquare([found[key] for key in kept], [DRAWS * wanted[key] for key in kept]).pvalue > LEVEL
    )


@pytest.mark.parametrize(("balanced", "zipf"), [(False, 0.0), (False, 1.0), (True, 0.0), (True, 1.0)])
def test_different_classes_are_drawn_one_after_another_by_frequency(balanced, zipf):
    draws = ClassDraws(classes=4, labels=2, balanced=balanced, zipf=zipf)
    found = Counter()
    for pair, count in drawn(lambda key: draws.different(key, 2)).items():
        found[tuple(sorted(pair))] += count
    frequency = np.arange(1.0, 5) ** -zipf
    frequency /= frequency.sum()
    wanted = defaultdict(float)
    for one, other in itertools.product(range(4), repeat=2):
        left_out = [k for k in range(4) if (k % 2 == one % 2 if balanced else k == one)]
        if other not in left_out:
            wanted[tuple(sorted((one, other)))] += frequency[one] * frequency[other] / (1 - frequency[left_out].sum())
    assert follows(found, wanted)


@pytest.mark.parametrize("absent", [False, True])
def test_independent_classes_follow_their_frequency(absent):
    draws = ClassDraws(classes=3, labels=2, balanced=False, zipf=1.5)
    frequency = np.arange(1.0, 4) ** -1.5
    frequency /= frequency.sum()
    wanted = {}
    for *others, last in itertools.product(range(3), repeat=3):
        share = frequency[last] * frequency[others].prod()
        if absent:
            share = 0.0 if last in others else share / (1 - frequency[last]) ** 2
        wanted[*others, last] = share
    assert follows(drawn(lambda key: draws.independent(key, 3, absent)), wanted)


@pytest.mark.parametrize("balanced", [False, True])
def test_novel_labels_differ_where_balanced(balanced):
    draws = ClassDraws(classes=6, labels=3, balanced=balanced, zipf=0.0)
    pairs = [pair for pair in itertools.product(range(3), repeat=2) if not balanced or pair[0] != pair[1]]
    assert follows(drawn(lambda key: draws.novel_labels(key, 2)), dict.fromkeys(pairs, 1 / len(pairs)))


def test_labels_of_the_world():
    balanced = ClassDraws(classes=6, labels=3, balanced=True, zipf=0.0).world_labels(jax.random.key(0))
    assert balanced.tolist() == [0, 1, 2, 0, 1, 2]
    label = ClassDraws(classes=6000, labels=3, balanced=False, zipf=0.0).world_labels(jax.random.key(0))
    assert stats.chisquare(np.bincount(label, minlength=3)).pvalue > LEVEL
