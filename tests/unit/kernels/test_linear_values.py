"""Every driver of the recurrence against its steps in float64: outputs, the last state, and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrence_oracle import GATES, TOLERANCE, agree, by_driver, by_steps, check, drawn, drivers, with_gradients

from positionbias.kernels import linear_attention
from positionbias.kernels.linear_recurrence.reference import recurrence_reference

OPTIONS = {
    "exclusive": {"inclusive": False},
    "reverse": {"reverse": True},
    "reverse and exclusive": {"reverse": True, "inclusive": False},
    "normalised": {"normalise": True},
}


def most(covered, all_of):
    """All combinations, of which those that are not `covered` are left to the slow tests."""
    return [one if one in covered else pytest.param(*one, marks=pytest.mark.slow) for one in all_of]


# Padding has decays of its own, of each kind; a channel of keys has what a scalar has.
SHORT = [(1, "none"), (1, "key and value"), (1, "scalar and value"), (7, "key and value"), (7, "scalar and value")]
LENGTHS = [*((130, gates) for gates in GATES), *SHORT]
# Drivers are told what is exclusive, where decays matter; what is reversed is turned around for them, and what is
# normalised a column of values.
TOLD = [
    *(("reverse and exclusive", gates) for gates in GATES),
    ("exclusive", "scalar and value"),
    ("reverse", "key and value"),
    ("normalised", "none"),
    ("normalised", "scalar and value"),
]


@pytest.mark.parametrize(("length", "gates"), most(LENGTHS, [(n, gates) for n in (1, 7, 130) for gates in GATES]))
def test_all_is_what_steps_give(gates, length):
    check(drawn(length, gates))


@pytest.mark.parametrize(("options", "gates"), most(TOLD, [(options, gates) for options in OPTIONS for gates in GATES]))
def test_options_do_what_they_say(gates, options):
    told = OPTIONS[options]
    check(drawn(65, gates, normalise=told.get("normalise", False)), **told)


def widened(x):
    """Features that are not 0 where x is, as of steps that fill the last chunk."""
    return jnp.concatenate([jnp.exp(x / 4), jnp.square(x) + 1], axis=-1)


@pytest.mark.parametrize("gates", ["none", "scalar", "key and value"])
def test_features_and_steps_that_write_nothing_are_those_of_arrays_made_before(gates):
    made, told = drawn(130, gates, size=12, normalise=True), drawn(130, size=6, state=False)
    told = made | {"q": told["q"], "k": told["k"]}
    valid = np.random.default_rng(0).random((2, 130)) < 0.8

    def of_steps(told):
        k = widened(told["k"]) * valid[..., None, None]
        return recurrence_reference(**(told | {"q": widened(told["q"]), "k": k}), normalise=True)

    with jax.enable_x64(True):
        known = jax.jit(with_gradients(of_steps))({name: np.asarray(x, np.float64) for name, x in told.items()})
        known = {name: np.asarray(x) for name, x in known.items()}
    options = {"normalise": True, "valid": valid, "feature": widened}
    for impl in drivers(told, **options):
        call = functools.partial(linear_attention, impl=impl, **options)
        found = jax.jit(with_gradients(lambda told, call=call: call(**told)))(told)
        agree({name: np.asarray(x) for name, x in found.items()}, known, 4e-6, impl)


RESETS = np.zeros((2, 65), bool)
RESETS[0, [5, 31, 32, 33, 64]] = RESETS[1, [0, 1, 47]] = True  # at both ends, side by side, and about where chunks meet


def cleared(gates, options, chunks=(None, 16)):
    told = drawn(65, gates, normalise=options.get("normalise", False))
    check(told, chunks=chunks, resets=RESETS, **options)


@pytest.mark.parametrize("gates", GATES)
def test_a_state_is_cleared_before_a_step(gates):
    cleared(gates, {}, chunks=(None, 16) if gates in ("key and value", "scalar and value") else (16,))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=str)
def test_a_state_is_cleared_before_a_step_with_options(options):
    cleared("scalar and value", options, chunks=(16,))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, *OPTIONS.values()], ids=str)
@pytest.mark.parametrize("gates", GATES)
def test_a_state_is_cleared_before_a_step_with_all_gates_and_options(gates, options):
    cleared(gates, options)


@pytest.mark.parametrize("impl", ["xla_quadratic", "xla_chunked", "mosaic_tpu_interpret"])
def test_nothing_of_what_is_cleared_is_left_by_rounding(impl):
    """Not a bit, in neither outputs nor gradients, however large it was."""
    told = drawn(60, "scalar", state=False, decay=1e-3)
    late = np.arange(60) >= 40
    slopes = late.astype(np.float32)[None, :, None, None]

    def weighed(told):
        return (linear_attention(**told, resets=np.arange(60) == 40, impl=impl)[0] * slopes).sum()

    large = {name: np.where(late.reshape(-1, *[1] * (x.ndim - 2)), x, 1e4 * x) for name, x in told.items()}
    found, same = (jax.jit(jax.grad(weighed))(one) for one in (told, large))
    for name, x in found.items():
        np.testing.assert_array_equal(x, same[name])
        assert (np.asarray(x)[:, :40] == 0).all()
        assert np.asarray(x)[:, 41:].all()


@pytest.mark.parametrize(
    ("gates", "chunks"), [("none", (64,)), ("scalar", (1, 256)), ("key and value", (1, 16, 64, 256))]
)
def test_chunks_of_any_length_are_exact(gates, chunks):
    check(drawn(63, gates), chunks=chunks)


@pytest.mark.parametrize("gates", ["key", "scalar and value"])
def test_16_bits_are_summed_in_32(gates):
    check(drawn(65, gates, dtype="bfloat16"), tolerance=TOLERANCE["bfloat16"])


@pytest.mark.parametrize("options", [{"normalise": True}, {"normalise": True, "reverse": True, "inclusive": False}])
def test_without_a_state_it_begins_at_nothing(options):
    check(drawn(40, "scalar", normalise=True, state=False), **options)


def check_long(told):
    known = by_steps(told)
    for impl in set(drivers(told)) - {"xla_quadratic"}:
        agree(by_driver(told, impl), known, about=f"{impl}:")


def test_gradients_of_decays_are_as_precise_over_many_steps():
    # A sum of q dq - k dk over all later steps would lose what is not left of it: 2e-4 here.
    check_long(drawn(2000, "scalar and value", decay=0.05))


@pytest.mark.parametrize(
    "gates", ["scalar", "key and value", *(pytest.param(one, marks=pytest.mark.slow) for one in ("key", "value"))]
)
def test_decays_that_are_one_and_slow_are_as_precise_over_many_steps(gates):
    # A number just below 1 is rounded by up to 2^-25. Where all decays are the same, that adds up: to 4e-5 here.
    told = drawn(4096, gates)
    check_long({name: np.full_like(x, -1e-4) if "decay" in name else x for name, x in told.items()})


@pytest.mark.parametrize("gates", ["scalar", "key", "value"])
@pytest.mark.parametrize("pattern", ["all", "every fourth", "-2 for 64 steps", "to nothing"])
def test_extreme_decays_are_as_precise(gates, pattern):
    told = drawn(130, gates, decay=0.1)  # of another test's shape, whose programs do
    name = "value_log_decay" if gates == "value" else "log_decay"
    at, low = {
        "all": (slice(None), -80.0),
        "every fourth": (slice(2, None, 4), -80.0),
        "-2 for 64 steps": (slice(16, 80), -2.0),
        "to nothing": (slice(5, None, 30), -np.inf),
    }[pattern]
    told[name] = np.array(told[name])
    told[name][:, at] = low
    check(told)
