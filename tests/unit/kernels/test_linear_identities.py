"""What must be the same recurrence is the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrence_oracle import agree, by_driver, drawn, drivers

from positionbias.kernels import linear_attention, linear_choice


@functools.lru_cache(maxsize=64)
def compiled(**options):
    """The call with these options, compiled once for each shape."""
    return jax.jit(lambda told: linear_attention(**told, **options))


def names(gates):
    return drivers(drawn(40, gates))


def close(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6 * float(np.abs(y).max()))


@pytest.mark.parametrize("impl", names("key and value"))
def test_decays_of_nothing_are_none(impl):
    told = drawn(40)
    none = {"log_decay": np.zeros_like(told["k"]), "value_log_decay": np.zeros_like(told["v"])}
    close(compiled(impl=impl)(told | none), compiled(impl=impl)(told))


@pytest.mark.parametrize("impl", names("key"))
def test_channels_that_decay_alike_are_one_decay(impl):
    told = drawn(40, "scalar")
    spread = told | {"log_decay": np.repeat(told["log_decay"][..., None], told["k"].shape[-1], -1)}
    one, other = (by_driver(x, impl) for x in (spread, told))
    one["gradient of log_decay"] = one["gradient of log_decay"].sum(axis=-1)
    agree(one, other)


@pytest.mark.parametrize(
    ("gates", "inclusive"), [("none", False), ("scalar", True), ("key and value", True), ("key and value", False)]
)
def test_reverse_is_the_same_of_steps_in_the_other_order(gates, inclusive):
    told = drawn(45, gates)
    flipped = {name: x if name == "initial_state" else np.flip(x, 1) for name, x in told.items()}
    for impl in names(gates):
        o, state = compiled(inclusive=inclusive, impl=impl)(flipped)
        turned = compiled(inclusive=inclusive, impl=impl, reverse=True)
        close(turned(told), (np.flip(o, 1), state))


@pytest.mark.parametrize(
    ("gates", "options"),
    [
        ("none", {}),
        ("key", {"reverse": True}),
        ("scalar and value", {"reverse": True}),
        ("scalar and value", {"normalise": True, "inclusive": False}),
    ],
)
def test_a_sequence_in_two_parts_goes_on_from_the_state(gates, options):
    told = drawn(50, gates, normalise=options.get("normalise", False))
    state = told.pop("initial_state")

    def in_two(told, state):
        parts = [{name: x[:, cut] for name, x in told.items()} for cut in (slice(0, 17), slice(17, None))]
        found = []
        for part in reversed(parts) if "reverse" in options else parts:
            o, state = linear_attention(**part, initial_state=state, impl=impl, **options)
            found.append(o)
        return jnp.concatenate(found[::-1] if "reverse" in options else found, axis=1), state

    for impl in names(gates):
        whole = compiled(impl=impl, **options)(told | {"initial_state": state})
        close(jax.jit(in_two)(told, state), whole)


@pytest.mark.parametrize("gates", ["scalar", "key and value"])
def test_replicas_are_each_what_it_is_alone(gates):
    each = [drawn(40, gates, seed=seed) for seed in (1, 2)]
    both = jax.tree.map(lambda *x: np.stack(x), *each)
    for impl in names(gates):

        def gradient(told, impl=impl):
            return jax.grad(lambda told: jnp.sum(jnp.sin(linear_attention(**told, impl=impl)[0])))(told)

        found, one_alone = jax.jit(jax.vmap(gradient))(both), jax.jit(gradient)
        alone = [one_alone(told) for told in each]
        for name, x in found.items():
            close(x, [one[name] for one in alone])


def test_keys_of_nothing_leave_no_trace():
    told = drawn(30, "key")
    seen = np.arange(30) % 3 != 1
    skipped = told | {name: told[name] * seen[:, None, None] for name in ("k", "log_decay")}
    o, state = compiled()(skipped)
    short, same = compiled()({n: x if n == "initial_state" else x[:, seen] for n, x in told.items()})
    close((o[:, seen], state), (short, same))


def test_what_is_divided_by_nothing_is_nothing():
    told = drawn(8, normalise=True, state=False)
    told["k"][:, :3] = 0
    call = compiled(normalise=True)
    o, gradients = jax.jit(jax.value_and_grad(lambda k: jnp.sum(call(told | {"k": k})[0])))(told["k"])
    assert np.isfinite(gradients).all()
    assert np.isfinite(o)
    np.testing.assert_array_equal(call(told)[0][:, :3], 0.0)


def test_what_is_divided_by_next_to_nothing_is_as_of_larger_sums():
    told = drawn(8, normalise=True, state=False)
    call, small = compiled(normalise=True), 1e-30
    made = jax.jit(jax.value_and_grad(lambda q, told: jnp.sum(call(told | {"q": q})[0] ** 2)))
    o, gradients = made(told["q"], told)
    same, larger = made(told["q"] * np.float32(small), told)
    close((same, larger * small), (o, gradients))


@pytest.mark.parametrize("apart", [60.0, 73.0, 80.0, 86.5, 87.3, 90.0, 200.0])
def test_what_is_divided_by_less_than_can_be_has_finite_gradients(apart):
    """A query and a key of which the features, softmaxes, meet in e^-apart: the mean of one value is that value."""

    def mean(apart):
        q, k = (jax.nn.softmax(jnp.stack(pair)) for pair in ((apart, 0.0), (0.0, apart)))
        q, k = (jnp.broadcast_to(x, (1, 1, 1, 2)) for x in (q, k))
        return 30 * linear_attention(q, k, jnp.ones((1, 1, 1, 1)), normalise=True)[0].sum()

    found, slope = jax.jit(jax.value_and_grad(mean))(apart)
    np.testing.assert_allclose(found, 30 if apart < 75 else 0, rtol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-4)


@pytest.mark.parametrize("gates", ["none", "key and value"])
def test_memory_grows_as_steps(gates):
    def taken(length):
        told = drawn(length, gates, size=16, values=16)
        loss = jax.grad(lambda x: jnp.sum(linear_attention(**x, impl="xla_chunked")[0] ** 2))
        return jax.jit(loss).lower(told).compile().memory_analysis().temp_size_in_bytes

    assert taken(2048) <= 2.1 * taken(1024)


def test_features_take_no_memory_for_all_steps():
    told, many = drawn(4096, size=2, state=False), 256
    matrix = np.ones((2, many), np.float32)
    loss = jax.grad(lambda x: jnp.sum(linear_attention(**x, feature=lambda y: y @ matrix)[0] ** 2))
    taken = jax.jit(loss).lower(told).compile().memory_analysis().temp_size_in_bytes
    assert taken < told["q"].nbytes // 2 * many / 2  # half of the features of queries


def test_choice_tells_the_driver_and_why_not_another():
    short, long, gated = drawn(40), drawn(300), drawn(40, "scalar")
    assert linear_choice(**short).driver.name == "xla_quadratic"
    assert linear_choice(**long).passed_over == (("xla_quadratic", "of 300 steps, chunks are faster and smaller"),)
    found = linear_choice(**gated, platform="cpu")
    assert found.driver.name == "xla_chunked"
    assert found.passed_over == (("xla_quadratic", "with decays, chunks are faster backwards"),)
    assert linear_choice(**short, chunk=16).passed_over == (("xla_quadratic", "chunk is told"),)
    assert linear_choice(**gated, platform="tpu").driver.name == "mosaic_tpu"
