"""Taking heads out."""

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.analysis.heads import gated, others, top, without
from positionbias.models.sites import Sites

SCORES = jnp.array([[0.1, 0.9, 0.4], [0.9, 0.2, 0.3]])
HEADS = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(np.float32)


def test_the_highest_scores_are_chosen_and_the_first_of_equal_ones():
    assert np.argwhere(top(SCORES, 1)).tolist() == [[0, 1]]
    assert np.argwhere(top(SCORES, 3)).tolist() == [[0, 1], [0, 2], [1, 0]]


def test_the_others_are_not_among_those_taken_and_differ_from_draw_to_draw():
    taken = top(SCORES, 2)
    drawn = [np.asarray(others(jax.random.key(seed), taken, 2)) for seed in range(12)]
    assert all(one.sum() == 2 and not (one & np.asarray(taken)).any() for one in drawn)
    assert len({one.tobytes() for one in drawn}) > 2
    assert np.asarray(others(jax.random.key(0), top(SCORES, 5), 5)).sum() == 1, "no more than are left"


def test_heads_are_set_to_nothing_or_multiplied_by_gates():
    """Of the layers that are told, by their numbers in the model."""
    name = "layers.3.attention.heads"
    expected = HEADS.copy()
    expected[:, :, [0, 2]] = 0
    sites = Sites(edit=without([1, 3], jnp.array([[False] * 3, [True, False, True]])))
    np.testing.assert_array_equal(sites(name, jnp.asarray(HEADS)), expected)
    sites = Sites(edit=gated([1, 3], jnp.array([[0.0] * 3, [1.0, 0.5, 0.0]])))
    np.testing.assert_allclose(sites(name, jnp.asarray(HEADS)), HEADS * np.array([1, 0.5, 0])[:, None], atol=1e-6)
