"""Rules that once came out wrong: read along two axes, not finite where rows pad, or with a gradient of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.errors import ConfigError
from positionbias.kernels import attention
from positionbias.kernels.softmax_attention import xla_chunked

DRIVERS = ["xla_dense", "xla_chunked", "mosaic_tpu_interpret"]
T = 40
NUMBERS = jnp.arange(1.0, T + 1) / 7


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(xla_chunked, "CHUNK", 16)
    monkeypatch.setattr(xla_chunked, "FEW", 0)


def loss(q, k, score, impl, stats=()):
    mask = lambda b, h, q, k: k <= q + 1  # noqa: E731
    o, found = attention(q, k, k, mask=mask, score=score, impl=impl, stats=stats, block_sizes=(16, 16))
    return jnp.sum(o**2) + sum(jnp.sum(x) for x in found if x is not None)


def all_of(score, impl, stats=()):
    q, k = (jax.random.normal(jax.random.key(i), (1, T, 1, 8)) for i in (0, 1))
    value = jax.jit(jax.value_and_grad(lambda q, k: loss(q, k, score, impl, stats), argnums=(0, 1)))
    return jax.tree.leaves(value(q, k))


def meshed(s, b, h, q, k):
    rows, columns = jnp.meshgrid(NUMBERS, NUMBERS, indexing="ij")
    return s + rows - 2 * columns


RULES = {
    "one array along both axes": (meshed, lambda s, b, h, q, k: s + NUMBERS[:, None] - 2 * NUMBERS[None]),
    "no number for rows that pad": (lambda s, b, h, q, k: s / NUMBERS[q], None),
    "no number for keys that pad": (lambda s, b, h, q, k: s / NUMBERS[k], None),
    "no slope at 0": (lambda s, b, h, q, k: jnp.sign(s) * jnp.sqrt(jnp.abs(s)), None),
}


@pytest.mark.parametrize("impl", DRIVERS)
@pytest.mark.parametrize("name", RULES)
def test_values_and_gradients_are_those_of_the_formula(name, impl):
    score, same = RULES[name]
    for one, other in zip(all_of(score, impl), all_of(same or score, "xla_dense"), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("impl", DRIVERS)
def test_a_score_of_minus_infinity_is_as_good_as_a_mask(impl):
    shut = all_of(lambda s, b, h, q, k: jnp.where(k <= q, s, -jnp.inf), impl, ("entropy",))
    q, k = (jax.random.normal(jax.random.key(i), (1, T, 1, 8)) for i in (0, 1))

    def masked(q, k):
        o, stats = attention(q, k, k, mask=lambda b, h, q, k: k <= q, stats=["entropy"], impl="xla_dense")
        return jnp.sum(o**2) + jnp.sum(stats.entropy)

    for one, other in zip(shut, jax.tree.leaves(jax.value_and_grad(masked, argnums=(0, 1))(q, k)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@jax.custom_jvp
def straight(x):
    """Rounds, and passes gradients straight through."""
    return jnp.round(x)


@straight.defjvp
def _(primals, tangents):
    return straight(*primals), tangents[0]


@pytest.mark.parametrize("impl", DRIVERS)
def test_a_gradient_of_ones_own_is_kept_where_it_can_be_and_refused_where_not(impl):
    with pytest.raises(ConfigError, match="a gradient of its own"):
        all_of(lambda s, b, h, q, k: straight(s), impl)

    def of(scale, impl):
        q = jax.random.normal(jax.random.key(0), (1, 12, 1, 8))
        return loss(q, q, lambda s, b, h, q, k: s + straight(scale * (q - k) / 3.0), impl)

    found, wanted = (jax.grad(of)(1.3, driver) for driver in (impl, "xla_dense"))
    assert abs(wanted) > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_scores_of_64_bits_are_changed_by_rules_of_64_bits():
    with jax.enable_x64(True):
        q = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 1, 4)))
        away = jnp.arange(6.0) / 7
        found = attention(q, q, q, score=lambda s, b, h, q, k: s / 3 - away[jnp.abs(q - k)], impl="xla_dense")
        s = np.einsum("BTNH,BSNH->BNTS", q, q) / 2 / 3 - np.abs(np.subtract.outer(np.arange(6), np.arange(6))) / 7
        a = np.exp(s) / np.exp(s).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(found, np.einsum("BNTS,BSNK->BTNK", a, q), rtol=1e-13)


def bent(impl):
    """Second derivatives of a loss with a statistic in it, by queries and a number that the rule captures."""
    q = jax.random.normal(jax.random.key(0), (1, 10, 1, 4))

    def slope(q, t):
        def of(q, t):
            told = {"mask": lambda b, h, q, k: k <= q, "score": lambda s, b, h, q, k: s - t * jnp.abs(q - k)}
            o, stats = attention(q, q, q, **told, stats=["received"], impl=impl, block_sizes=(4, 4))
            return jnp.sum(o**2) + jnp.var(stats.received)

        return sum(jnp.sum(jnp.sin(x)) for x in jax.grad(of, argnums=(0, 1))(q, t))

    return jax.jit(jax.grad(slope, argnums=(0, 1)))(q, 0.5)


def test_second_derivatives_by_chunks_are_those_of_all_at_once(monkeypatch):
    monkeypatch.setattr(xla_chunked, "CHUNK", 4)
    for one, other in zip(bent("xla_chunked"), bent("xla_dense"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_refused_by_kernels():
    with pytest.raises(ConfigError, match="kernels by tiles have no second derivatives; allowed: impl = 'xla_dense'"):
        bent("mosaic_tpu_interpret")
