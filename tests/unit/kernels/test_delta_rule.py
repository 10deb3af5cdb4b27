"""The delta rule by every driver: against its formula in float64, and what the formula implies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from delta_oracle import TOLERANCE, agree, by_formula, compiled, drawn, drivers, gate, state, with_gradients

from positionbias.errors import ConfigError
from positionbias.kernels import delta_rule
from positionbias.kernels.delta_recurrence.call import posed_delta
from positionbias.kernels.delta_recurrence.ladder import choose
from positionbias.kernels.delta_recurrence.reference import delta_rule_reference


def check(params, chunk=None, tolerance=TOLERANCE["float32"], **more):
    known = by_formula(delta_rule_reference, params, more)
    for impl in drivers():
        found = with_gradients(delta_rule, params, more, chunk=chunk, impl=impl)
        assert found[0][0].dtype == params["v"].dtype
        assert found[0][1].dtype == np.float32
        agree(found, known, tolerance)


def whole(length, dtype="float32"):
    params = drawn(length, dtype=dtype)
    strength, log_decay = gate(params, 0, 2), gate(params, -0.3, 0, seed=3)
    return params | {"strength": strength, "log_decay": log_decay, "initial_state": state(params)}


@pytest.mark.parametrize("length", [1, 7, pytest.param(63, marks=pytest.mark.slow), 65, 130])
def test_lengths(length):
    check(whole(length))


@pytest.mark.parametrize("chunk", [1, 4, 65, 200])
def test_chunks(chunk):
    check(whole(65), chunk)


@pytest.mark.parametrize("without", [["log_decay"], ["initial_state"], ["log_decay", "initial_state"]], ids=str)
def test_what_may_be_left_out(without):
    check({name: x for name, x in whole(37).items() if name not in without})


@pytest.mark.parametrize("without", [[], ["log_decay"], ["initial_state"]], ids=str)
@pytest.mark.parametrize("where", [[0], [5, 15, 16, 17], [1, 36]], ids=str)
def test_a_state_is_cleared_before_a_step(where, without):
    resets = np.zeros((2, 37), bool)
    resets[0, where] = resets[1, [w // 2 for w in where]] = True
    check({name: x for name, x in whole(37).items() if name not in without}, resets=resets)


def test_bfloat16():
    check(whole(65, "bfloat16"), tolerance=TOLERANCE["bfloat16"])


def test_float64():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), whole(37))
        found, known = (compiled(f)(**params) for f in (delta_rule, delta_rule_reference))
        assert {x.dtype for x in found} == {np.dtype(np.float64)}
        agree(found, known, 1e-14)


def test_extreme_decays():
    params = whole(65)
    sudden = np.random.default_rng(4).random(params["log_decay"].shape) < 0.2
    check(params | {"log_decay": np.where(sudden, np.float32(-80), params["log_decay"])})


def test_a_decay_to_nothing_is_exact():
    params = whole(33)
    params["log_decay"][:, 20] = -np.inf
    found = with_gradients(delta_rule, params)
    later = {name: x[:, 20:] for name, x in params.items() if name != "initial_state"}
    (o, last), gradients = found
    o_later, last_later = compiled(delta_rule)(**later)
    np.testing.assert_allclose(o[:, 20:], o_later, atol=2e-6)
    np.testing.assert_allclose(last, last_later, atol=2e-6)
    assert all(np.isfinite(x).all() for x in gradients.values())


@pytest.mark.parametrize("strength", [0.0, 0.01])
def test_decays_that_are_one_and_slow_are_as_precise_over_many_steps(strength):
    # A number just below 1 is rounded by up to 2^-25. Where all decays are the same, that adds up: to 1e-4 here.
    params = whole(4096)
    told = {"strength": strength, "log_decay": -1e-4}
    check(params | {name: np.full_like(params[name], x) for name, x in told.items()}, tolerance=2e-6)


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("strength", [1.0, 1.9, 1.999])
def test_equal_keys_lose_no_more_than_rounded_keys_do(strength, chunk):
    """Near strength 2 little is forgotten, and what |k|^2 is off by comes back at every step.

    A sum of 8 squares may be off by 8 roundings of 2**-24, as it is for keys longer by 2**-22.
    """
    params = whole(130)
    params["k"] = np.broadcast_to(params["k"][:, :1], params["k"].shape)
    full = np.full_like(params["strength"], strength)
    params |= {"strength": full, "log_decay": np.zeros_like(full)}
    known, near = (by_formula(delta_rule_reference, {**params, "k": params["k"] * by}) for by in (1.0, 1 + 2.0**-22))
    leaves = zip(jax.tree.leaves(known), jax.tree.leaves(near), strict=True)
    moved = max(np.abs(one - other).max() / np.abs(one).max() for one, other in leaves)
    assert moved < 2e-4
    check(params, chunk, TOLERANCE["float32"] + moved)


@pytest.mark.parametrize("impl", drivers())
def test_a_sequence_continued_from_its_state_is_the_whole(impl):
    params = whole(50)
    o, last = compiled(delta_rule, impl=impl)(**params)
    rows = {name: x for name, x in params.items() if name != "initial_state"}
    parts, now = [], params["initial_state"]
    for cut in (slice(0, 1), slice(1, 24), slice(24, 50)):
        part, now = compiled(delta_rule, impl=impl)(**{name: x[:, cut] for name, x in rows.items()}, initial_state=now)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), o, atol=5e-6)
    np.testing.assert_allclose(now, last, atol=5e-6)


@pytest.mark.parametrize("impl", drivers())
def test_strength_0_is_decay_alone(impl):
    params = whole(60)
    params["strength"][...] = 0
    _, last = compiled(delta_rule, impl=impl)(**params)
    wanted = params["initial_state"] * np.exp(params["log_decay"].sum(axis=1))[..., None, None]
    np.testing.assert_allclose(last, wanted, rtol=1e-5)


@pytest.mark.parametrize("impl", drivers())
def test_what_strong_decays_leave_is_as_precise_at_every_step(impl):
    params = whole(60)
    params |= {"strength": np.zeros_like(params["strength"]), "log_decay": np.full_like(params["log_decay"], -0.5)}
    (known, _), _ = by_formula(delta_rule_reference, params)
    off = np.abs(compiled(delta_rule, impl=impl)(**params)[0] - known).max(axis=-1) / np.abs(known).max(axis=-1)
    assert off.max() < 1e-5


@pytest.mark.parametrize("impl", drivers())
def test_steps_of_strength_0_and_no_decay_leave_the_state_to_the_bit(impl):
    params = whole(60)
    for name in ("strength", "log_decay"):
        params[name][...] = 0
    _, last = compiled(delta_rule, impl=impl)(**params)
    np.testing.assert_array_equal(last, params["initial_state"])


@pytest.mark.parametrize("impl", drivers())
def test_of_orthonormal_keys_the_last_value_written_is_recalled(impl):
    random = np.random.default_rng(0)
    names = random.integers(8, size=40)
    k = np.eye(8, dtype=np.float32)[names][None, :, None]
    v = random.normal(size=(1, 40, 1, 6)).astype(np.float32)
    _, last = compiled(delta_rule, impl=impl)(q=k, k=k, v=v, strength=np.ones((1, 40, 1), np.float32))
    for name in np.unique(names):
        written = v[0, np.flatnonzero(names == name)[-1], 0]
        np.testing.assert_allclose(last[0, 0, name], written, atol=1e-5)


@pytest.mark.parametrize("impl", drivers())
def test_vmap(impl):
    params = whole(20)
    together = jax.tree.map(lambda x: np.stack([x, x[::-1]]), params)
    call = compiled(delta_rule, impl=impl)
    found = jax.jit(jax.vmap(lambda params: call(**params)))(together)
    for i in range(2):
        agree(tuple(x[i] for x in found), call(**jax.tree.map(lambda x, i=i: x[i], together)), 2e-6)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({}, None),
        ({"dtype": jnp.float64}, "q is float64, and these kernels take float32 and bfloat16"),
        (
            {"size": 640, "values": 640},
            "chunks of 8 steps with keys of 640 and values of 640 need about 24 MiB of vector memory",
        ),
    ],
)
def test_why_a_tpu_cannot_is_told(told, why):
    with jax.enable_x64(True):
        params = drawn(6, **told)
        found = choose(posed_delta(**params, gates={"strength": gate(params, 0, 1)}), None, "tpu")
    passed = dict(found.passed_over)
    assert (why is None and found.driver.name == "mosaic_tpu") or passed["mosaic_tpu"].startswith(why)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"q": np.ones((2, 6, 2, 8), int)}, r"q, k and v are of .*int.*; allowed: one floating type"),
        (
            {"v": np.ones((2, 5, 2, 6), np.float32)},
            r"v \[2, 5, 2, 6\] are not allowed; allowed: q and k \[B, T, N, H\]",
        ),
        ({"strength": np.ones((2, 6), np.float32)}, r"strength is float32 \[2, 6\]; allowed: .* = \[2, 6, 2\]"),
        ({"log_decay": np.zeros((2, 6, 2), int)}, r"log_decay is int.* \[2, 6, 2\]; allowed: floating numbers"),
        ({"initial_state": np.ones((2, 8, 6), np.float32)}, r"initial_state is .*allowed: .*= \[2, 2, 8, 6\]"),
        ({"chunk": 0}, "chunk = 0 is not allowed; allowed: a whole number from 1, or None"),
        ({"chunk": True}, "chunk = True is not allowed"),
        ({"impl": "xla_chunk"}, "impl: unknown driver 'xla_chunk', did you mean 'xla_chunked'"),
        (
            {"impl": "mosaic_tpu"},
            "impl = 'mosaic_tpu' cannot do this: the platform is cpu, and these kernels are for tpu",
        ),
    ],
)
def test_what_is_refused(told, why):
    params = drawn(6)
    with pytest.raises(ConfigError, match=why) as error:
        delta_rule(**{**params, "strength": gate(params, 0, 1), **told})
    assert str(error.value).count(". ") == 0
