"""Squared error: its loss, what is right, what is said and the Gaussian's log-probability, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec

OBJECTIVE = spec.build("objectives", "squared_error", "objective")


def test_losses_are_summed_over_features():
    outputs, targets = jnp.array([[1.0, 2], [0, 0]]), jnp.array([[0.0, 0], [0, 1]])
    assert OBJECTIVE.losses(outputs, targets).tolist() == [5, 1]
    wanted = -0.5 * np.array([5, 1]) - np.log(2 * np.pi)  # two features of unit variance
    np.testing.assert_allclose(OBJECTIVE.log_probability(outputs, targets), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "right"),
    [([0.25, 0.75], True), ([0.5, 1], False), ([0, 0.5], False), ([-0.75, 1], False), ([0.75, 1], False)],
)
def test_every_feature_of_a_right_answer_is_nearer_than_a_half(outputs, right):
    assert bool(OBJECTIVE.right(jnp.array(outputs), jnp.array([0.0, 1.0]))) == right


def test_what_is_said_is_rounded():
    assert OBJECTIVE.said(jnp.array([0.25, 0.75, -0.25, 2.0])).tolist() == [0, 1, 0, 2]
