"""Softmax that pays for uneven attention: literal prices, by the kernel and by the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.errors import ConfigError
from positionbias.masks.order import Bidirectional, Causal
from positionbias.models.sites import Sites
from positionbias.operators.even_softmax import EvenSoftmax, unevenness
from positionbias.positions.base import Placed
from positionbias.tokens import sequential

NONE = Placed(spec.build("positions", "none", "test"))
T = 4


def paid(operator, q, k, tokens, mask, record=("*penalty",)):
    sites = Sites(record=record)
    operator(q, k, jnp.ones_like(k), tokens, tokens, mask, NONE, {}, sites)
    return np.asarray(sites.recorded["penalty"])


def even_scores():
    return jnp.zeros((1, T, 2, 8)), jnp.ones((1, T, 2, 8))


def test_even_attention_that_all_keys_receive_costs_nothing():
    np.testing.assert_allclose(
        paid(EvenSoftmax(price=3.0), *even_scores(), sequential(T), Bidirectional()), 0, atol=1e-6
    )


def test_even_weights_under_a_causal_mask_are_uneven_by_the_mask():
    received = np.array([1 + 1 / 2 + 1 / 3 + 1 / 4, 1 / 2 + 1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 4])
    want = 2.0 * received.var() / received.mean() ** 2
    for record in (("*penalty",), ("*penalty", "pattern")):  # by the kernel, and by the formula
        np.testing.assert_allclose(
            paid(EvenSoftmax(price=2.0), *even_scores(), sequential(T), Causal(), record), [want], rtol=1e-6
        )


def test_one_key_that_receives_it_all_costs_most_and_padding_does_not_count():
    received = jnp.array([[[0.0, 6.0, 0.0, 0.0]]])
    np.testing.assert_allclose(unevenness(received, jnp.ones(4, bool)), [[3.0]])
    np.testing.assert_allclose(unevenness(received, jnp.array([True, True, False, False])), [[1.0]])
    np.testing.assert_allclose(unevenness(jnp.zeros((1, 1, 4)), jnp.ones(4, bool)), [[0.0]])


def test_the_gradient_of_the_price_reaches_queries_and_keys():
    q, k = (jax.random.normal(jax.random.key(i), (2, T, 2, 8)) for i in (0, 1))

    def price(q, k, record=("*penalty",)):
        sites = Sites(record=record)
        EvenSoftmax(price=1.0)(q, k, k, sequential(T), sequential(T), Causal(), NONE, {}, sites)
        return sites.recorded["penalty"].sum()

    by_kernel = jax.grad(price, argnums=(0, 1))(q, k)
    by_formula = jax.grad(lambda q, k: price(q, k, ("*penalty", "pattern")), argnums=(0, 1))(q, k)
    for one, other in zip(by_kernel, by_formula, strict=True):
        assert np.abs(one).max() > 1e-3
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_negative_price_is_refused():
    with pytest.raises(ConfigError, match="price = -1"):
        EvenSoftmax(price=-1.0)
