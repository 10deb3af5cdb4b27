"""A difference of means along a planted direction."""

import jax
import numpy as np
import pytest

from positionbias.analysis.steering import STRENGTHS, Steering


def test_the_difference_of_means_is_the_planted_direction(planted):
    steering = Steering(variable="condition", examples=512)
    means, seen = steering._means(planted, ["layers.0.stream"], *jax.random.split(jax.random.key(0)))
    assert np.asarray(seen).all()
    difference = np.asarray(means[0, 1] - means[0, 0])
    assert float(difference @ planted.rotation[0]) == pytest.approx(2, abs=1e-4)
    rest = difference - 2 * np.asarray(planted.rotation[0])
    assert np.linalg.norm(rest) < 0.3, "objects are as frequent on either side, but for the draw"


def test_answers_turn_from_the_strength_at_which_the_boolean_is_another(planted):
    found = jax.jit(lambda: Steering(variable="condition").measure(planted, [0, 1], jax.random.key(0)))()
    turned = dict(zip(STRENGTHS, np.asarray(found["turned"][0]), strict=True))
    assert turned[-1.0] == turned[0.0] == 0
    assert turned[1.0] > 0.98
    assert turned[2.0] > 0.98
    assert found["turned"][1, STRENGTHS.index(1.0)] < 0.2
    assert found["random_turned"][0, STRENGTHS.index(1.0)] < 0.2
    margin = dict(zip(STRENGTHS, np.asarray(found["margin"][0]), strict=True))
    assert margin[0.0] == pytest.approx(-10, abs=0.3)
    assert margin[1.0] == pytest.approx(10, abs=1)


def test_nothing_is_added_where_no_example_had_one_of_the_values(planted):
    """One example has one value, and so there is no difference of two."""
    found = jax.jit(lambda: Steering(variable="condition", examples=1).measure(planted, [0], jax.random.key(0)))()
    for name in ("margin", "random_margin"):
        np.testing.assert_allclose(found[name][0], found[name][0, STRENGTHS.index(0.0)], atol=1e-4, err_msg=name)
