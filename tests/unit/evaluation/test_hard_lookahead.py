"""Look-ahead that is rounded when a model is measured."""

import jax
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.spec import ConfigError

HARD = spec.build("interventions", "hard_lookahead", "x")


def test_keys_are_seen_as_far_ahead_as_is_asked_rounded(tiny):
    """The pattern is the softmax of the scores over what was recorded as asked for, and nothing beyond."""
    overrides = {"model.operator": "[lookahead(most=3), softmax]", "model.layers": 2, "model.mask": "bidirectional"}
    experiment = build(tiny(overrides))
    (condition, *_), task = experiment.task.conditions(), experiment.task
    changed = HARD.model(experiment, condition)
    batch = jax.jit(lambda key: task.batch(key, condition, 16))(jax.random.key(1))

    @jax.jit
    def read(key):
        model, sites = changed.initialise(key), Sites(record=["layers.0.attention.*"])
        model(batch.inputs, batch.tokens, task.context_length(condition), sites)
        return sites.recorded

    seen = read(jax.random.key(0))
    ahead = np.round(np.asarray(seen["layers.0.attention.lookahead"]))
    assert set(ahead.ravel().tolist()) >= {1.0, 2.0}, "queries ask for several"
    away = np.arange(8)[None, :] - np.arange(8)[:, None]
    near = away <= ahead[:, :, None]
    scores = np.exp(np.asarray(seen["layers.0.attention.scores"])) * near[:, None]
    wanted = scores / scores.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(seen["layers.0.attention.pattern"], wanted, atol=1e-5)
    assert (np.asarray(seen["layers.0.attention.pattern"])[~np.broadcast_to(near[:, None], wanted.shape)] == 0).all()
    one = build(tiny({"model.operator": "lookahead(most=3)", "model.mask": "bidirectional"}))
    ahead = np.arange(8)[None, :] - np.arange(8)[:, None] <= 3
    np.testing.assert_array_equal(HARD.reach(HARD.model(one, condition), condition), ahead)


def test_a_model_that_learns_none_is_refused(tiny):
    experiment = build(tiny())
    with pytest.raises(ConfigError) as error:
        HARD.model(experiment, experiment.task.conditions()[0])
    assert str(error.value) == (
        "hard_lookahead: model.operator = softmax(scaled=True, impl=None) learns no look-ahead; allowed: a"
        " model with the operator lookahead."
    )
