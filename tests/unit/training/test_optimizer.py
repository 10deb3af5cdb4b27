"""Update rules against their formula in numpy, schedules at literal points."""

import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.config import schema
from positionbias.training.optimizer import (
    AdamW,
    ConstantRate,
    CosineRate,
    LinearRate,
    Sgd,
    rate_share,
    transformation,
)


def shares(schedule, warmup, steps):
    return [round(float(rate_share(schedule, warmup, steps, jnp.int32(s))), 6) for s in range(steps)]


def test_schedules_are_literal():
    assert shares(ConstantRate(), 0, 3) == [1, 1, 1]
    assert shares(LinearRate(), 0, 5) == [1, 0.75, 0.5, 0.25, 0]
    assert shares(LinearRate(final=0.5), 2, 5) == [0.5, 1.0, 1.0, 0.75, 0.5]
    assert shares(CosineRate(), 0, 5) == [1, 0.853553, 0.5, 0.146447, 0]
    assert shares(CosineRate(final=0.1), 4, 7) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.55, 0.1]
    assert shares(CosineRate(), 0, 1) == [1]


def test_adamw_follows_its_formula():
    tx = transformation(schema.Optimizer(), AdamW(b1=0.9, b2=0.99, eps=1e-8), 0.1)
    p, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    state = tx.init(jnp.asarray(p, jnp.float32))
    for t, g in enumerate([np.array([0.5, -1.0]), np.array([0.2, 3.0])], 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        expected = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.1 * p
        found, state = tx.update(jnp.asarray(g, jnp.float32), state, jnp.asarray(p, jnp.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (schema.Optimizer(), [3.0, -4.0]),
        (schema.Optimizer(clip_norm=1.0), [0.6, -0.8]),
        (schema.Optimizer(clip_value=3.5), [3.0, -3.5]),
    ],
)
def test_clipping(config, expected):
    tx = transformation(config, Sgd(), 0.0)
    gradient = jnp.array([3.0, -4.0])
    found, _ = tx.update(gradient, tx.init(gradient), gradient)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sgd_momentum_is_heavy_ball():
    tx = transformation(schema.Optimizer(), Sgd(momentum=0.5), 0.0)
    gradient = jnp.array([1.0])
    state = tx.init(gradient)
    found = []
    for _ in range(3):
        direction, state = tx.update(gradient, state, gradient)
        found.append(float(direction[0]))
    assert found == [1.0, 1.5, 1.75]
