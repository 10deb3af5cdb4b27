"""Periodic sinusoids and the stepped bias."""

import jax.numpy as jnp
import numpy as np
import pytest
from toys import Reads

from positionbias import spec
from positionbias.operators.softmax import Softmax
from positionbias.positions.additive import Sinusoidal
from positionbias.positions.base import Dims, Placed
from positionbias.positions.distance import ALiBi
from positionbias.positions.periodic import Periodic
from positionbias.tokens import sequential


def test_the_code_is_that_of_the_position_in_its_period():
    x, at = jnp.ones((1, 7, 4)), np.array([0, 1, 2, 3, 4, 7, 30])
    found = Periodic(period=3).embed(x, sequential(7, position=at), {})
    wanted = Sinusoidal().embed(x, sequential(7, position=np.array([0, 1, 2, 0, 1, 1, 0])), {})
    np.testing.assert_array_equal(found, wanted)


def test_the_bias_is_a_slope_times_whole_periods_of_distance():
    tokens = sequential(5)
    bias = Periodic(period=2).bias(tokens.rows(), tokens.columns(), 2, {})
    periods = np.array([[0, 0, 1, 1, 2], [0, 0, 0, 1, 1], [1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [2, 1, 1, 0, 0]])
    np.testing.assert_array_equal(bias, [-periods / 16, -periods / 256])


def test_a_period_of_one_has_the_bias_of_alibi():
    tokens = sequential(6)
    found = Periodic(period=1).bias(tokens.rows(), tokens.columns(), 3, {})
    np.testing.assert_array_equal(found, ALiBi().bias(tokens.rows(), tokens.columns(), 3, {}))


def pattern(scheme):
    """What softmax attends to where all inputs are the same."""
    tokens, mask = sequential(8), spec.build("masks", "bidirectional", "mask")
    x = scheme.embed(jnp.ones((1, 8, 8)), tokens, {}).reshape(1, 8, 2, 4)
    kept = {}
    Softmax()(
        x, x, x, tokens, tokens, mask, Placed(scheme), {}, Reads(lambda name, value: kept.setdefault(name, value))
    )
    return np.asarray(kept["pattern"])[0]


def test_without_the_bias_positions_a_period_apart_are_exchangeable():
    found = pattern(Periodic(period=3, stepped_bias=False))
    np.testing.assert_array_equal(found[:, :, :5], found[:, :, 3:])
    np.testing.assert_array_equal(found[:, :5], found[:, 3:])
    assert np.ptp(found[0, 0, :3]) > 0.01
    stepped = pattern(Periodic(period=3))
    assert (np.abs(stepped[:, 0, :5] - stepped[:, 0, 3:]) > 1e-4).all()


@pytest.mark.parametrize("stepped", [True, False])
def test_flags_follow_the_argument(stepped):
    scheme, tokens = Periodic(stepped_bias=stepped), sequential(3)
    assert (scheme.embeds, scheme.rotates, scheme.biases, scheme.multiplies) == (True, False, stepped, False)
    assert (scheme.bias(tokens.rows(), tokens.columns(), 2, {}) is not None) == stepped


def test_what_does_not_fit_is_refused():
    with pytest.raises(spec.ConfigError) as error:
        spec.build("positions", "periodic(period=0)", "position")
    assert str(error.value) == "position: period = 0 is not allowed; allowed: a whole number from 1 to 65536."
    with pytest.raises(spec.ConfigError, match=r"periodic needs an even model\.width, got 7; allowed: even numbers\."):
        Periodic().check(Dims(width=7, heads=1, head_size=7, length=4))
