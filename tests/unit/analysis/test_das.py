"""A planted boolean is found where it stands, and nowhere else, and not with shuffled labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.alignment import Training, judged, polar, rotated, subspaces
from positionbias.analysis.das import Das
from positionbias.errors import ConfigError

NAMES = ["layers.0.stream", "layers.1.stream"]


@pytest.fixture(scope="module")
def found(planted):
    """The directions of both layers, with right and with shuffled labels, and how they do."""

    def ask(key):
        learned, asked = jax.random.split(key)
        bases = subspaces(planted, NAMES, "condition", 1, Training(200, 64, 3e-2), learned, (False, True))
        return bases, judged(planted, NAMES, "condition", *((bases[:, i], jnp.ones((2, 1))) for i in range(2)), asked)

    return jax.jit(ask)(jax.random.key(0))


def test_the_planted_boolean_is_found_and_its_controls_stay_at_chance(found):
    """Behind the layer where it stands. In the next one the answer does, of which one direction holds next to none."""
    _, shares = found
    assert shares["iia"][0] > 0.98
    assert shares["changed"][0] > 0.98
    assert shares["changed"][1] < 0.3
    for control in ("shuffled", "random"):
        assert float(shares[control][0]) == pytest.approx(0.5, abs=0.1)
    assert float(shares["nothing"]) == pytest.approx(0.5, abs=0.07)
    assert shares["whole"][0] < 0.3, "another item's stream brings its objects"


def test_the_direction_is_the_planted_one(found, planted):
    """As near as answers need it, which are right before it is there; one at random has 0.2, and so has the control."""
    right, shuffled = found[0][0, :, 0]
    assert float(jnp.linalg.norm(right)) == pytest.approx(1, abs=1e-5)
    assert abs(float(right @ planted.rotation[0])) > 0.8
    assert abs(float(shuffled @ planted.rotation[0])) < 0.5


def test_the_polar_factor_is_the_nearest_orthonormal_one():
    draw = np.random.default_rng(0)
    left, right = (np.linalg.qr(draw.normal(size=(n, n)))[0] for n in (3, 5))
    matrix = (left * np.array([0.5, 0.9, 1.5])) @ right[:3]
    np.testing.assert_allclose(polar(jnp.asarray(matrix, jnp.float32)), left @ right[:3], atol=1e-5)
    square = rotated(jax.random.key(0), 20, 20)
    np.testing.assert_allclose(square @ square.T, np.eye(20), atol=1e-5)


def test_what_cannot_be_asked_is_refused(planted):
    for das, message in (
        (Das(variable="conditon"), "variable: unknown variable 'conditon', did you mean 'condition'"),
        (Das(dimensions=21), "dimensions = 21 is not allowed; allowed: a whole number from 1 to model.width = 20"),
        (Das(variable="evidence"), "task = .* is not allowed; allowed: a task that answers the token of the evidence"),
    ):
        with pytest.raises(ConfigError, match=message):
            das.check(planted)
    with pytest.raises(ConfigError, match="updates = 0 is not allowed; allowed: a whole number from 1"):
        Das(updates=0)
