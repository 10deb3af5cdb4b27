"""FIRE: against its formula, and where it could divide by zero."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.models.parameters import Noise
from positionbias.positions.base import Dims
from positionbias.positions.interpolated import FIRE
from positionbias.tokens import sequential

DIMS = Dims(width=8, heads=2, head_size=4, length=6)


def parameters(scheme, dims=DIMS):
    """As a model would start them."""
    declared = scheme.layer_parameters(dims)
    noise = Noise(jax.random.normal(jax.random.key(0), (1000,)))
    return {name: spec.build("initializers", m.initializer, name)(noise, m) for name, m in declared.items()}


def bias(scheme, params, position):
    tokens = sequential(len(position), position=np.array(position))
    return np.asarray(scheme.bias(tokens.rows(), tokens.columns(), 2, params))


def test_it_follows_its_formula():
    scheme, position = FIRE(width=3, c=0.5, threshold=4.0), [0, 2, 9, 5]
    params = parameters(scheme)
    found = bias(scheme, params, position)
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    assert found.shape == (2, 4, 4)
    for a, i in enumerate(position):
        for b, j in enumerate(position):
            share = math.log(0.5 * abs(i - j) + 1) / math.log(0.5 * max(4, i) + 1)
            hidden = np.maximum(share * p["first"][0] + p["first_bias"], 0)
            wanted = hidden @ p["second"] + p["second_bias"]
            np.testing.assert_allclose(found[:, a, b], wanted, rtol=1e-5, atol=1e-6)


def test_the_threshold_bounds_where_only_distances_count():
    params = parameters(FIRE(threshold=100.0))
    near, moved = bias(FIRE(), params, [0, 1, 5]), bias(FIRE(), params, [50, 51, 55])
    np.testing.assert_allclose(near, moved, rtol=1e-6)
    assert not np.allclose(near, bias(FIRE(), params, [200, 201, 205]), atol=1e-3)


@pytest.mark.parametrize("threshold", [1e-6, 5.0, 512.0])
def test_gradients_are_finite_at_position_zero(threshold):
    scheme = FIRE(c=1e-6, threshold=threshold)
    params = parameters(scheme)
    tokens = sequential(6)

    def loss(params):
        return jnp.sum(jnp.sin(scheme.bias(tokens.rows(), tokens.columns(), 2, params)))

    value, gradients = jax.value_and_grad(loss)(params)
    assert np.isfinite(value)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
    assert np.abs(gradients["log_c"]).sum() > 0


def test_the_threshold_learns_where_queries_are_nearer():
    scheme = FIRE(threshold=5.5)
    tokens = sequential(6, position=np.arange(6))
    params = parameters(scheme)
    found = jax.grad(lambda p: jnp.sum(jnp.sin(scheme.bias(tokens.rows(), tokens.columns(), 2, p))))(params)
    assert np.abs(found["log_threshold"]).sum() > 0


def test_what_it_declares():
    made = FIRE(width=5).layer_parameters(DIMS)
    assert {name: m.shape for name, m in made.items()} == {
        "log_c": (1,),
        "log_threshold": (1,),
        "first": (1, 5),
        "first_bias": (5,),
        "second": (5, 2),
        "second_bias": (2,),
    }
    started = parameters(FIRE(c=0.1, threshold=512.0))
    np.testing.assert_allclose(np.exp(started["log_c"]), [0.1], rtol=1e-6)
    np.testing.assert_allclose(np.exp(started["log_threshold"]), [512.0], rtol=1e-5)
    assert np.std(started["first_bias"]) > 0.5
    assert (started["second_bias"] == 0).all()
    assert (FIRE().embeds, FIRE().rotates, FIRE().biases, FIRE().multiplies) == (False, False, True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fire(width=0)", "width = 0 is not allowed; allowed: a whole number from 1 to 65536."),
        ("fire(c=0)", "c = 0.0 is not allowed; allowed: a number from 1e-06 to 1000000."),
        ("fire(threshold=-1)", "threshold = -1.0 is not allowed; allowed: a number from 1e-06 to 1000000."),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("positions", text, "position")
    assert str(error.value) == f"position: {message}"
