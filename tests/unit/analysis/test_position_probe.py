"""The regression of the position probe against its formula, and against what it can and cannot know."""

import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.position_probe import explained

RANDOM = np.random.default_rng(0)
NUMBER = np.tile(np.arange(10.0), 30).astype(np.float32)
NOISE = RANDOM.normal(size=(2, 300, 4)).astype(np.float32)


def test_it_is_ridge_regression_of_standardised_features():
    train, test = NOISE + 0.3 * NUMBER[:, None] * np.array([1, 0, -1, 0], np.float32)
    x, z = ((part - train.mean(axis=0)) / train.std(axis=0) for part in (train, test))
    y = NUMBER - NUMBER.mean()
    weights = np.linalg.solve(x.T @ x / 300 + 0.1 * np.eye(4), x.T @ y / 300)
    expected = 1 - np.sum((y - z @ weights) ** 2) / np.sum(y**2)
    assert float(explained(*map(jnp.asarray, (train, test, NUMBER)), 0.1)) == pytest.approx(expected, abs=1e-4)
    assert 0.3 < expected < 0.95


def test_features_that_tell_the_number_explain_all_and_noise_nothing():
    told = np.concatenate([NOISE, np.stack([NUMBER, NUMBER])[..., None]], axis=-1)
    assert float(explained(*map(jnp.asarray, told), NUMBER, 1e-6)) == pytest.approx(1, abs=1e-3)
    assert float(explained(*map(jnp.asarray, NOISE), NUMBER, 1e-6)) < 0.1


def test_of_a_single_row_there_is_nothing_to_explain():
    assert float(explained(*map(jnp.asarray, NOISE), jnp.zeros(300), 1e-3)) == 0
