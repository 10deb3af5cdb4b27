"""The Mosaic GPU kernels of the recurrence against its steps in float64, in jax's interpreter; and what they refuse."""

import faulthandler

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrence_oracle import TOLERANCE, agree, by_driver, by_steps, drawn

from positionbias.errors import ConfigError
from positionbias.kernels import linear_attention, linear_choice
from positionbias.kernels.linear_recurrence.call import posed
from positionbias.kernels.linear_recurrence.decays import kept, left
from positionbias.kernels.linear_recurrence.ladder import ladder
from positionbias.kernels.recurrence_cases import RECURRENCES

needs_mosaic_gpu = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="Mosaic GPU needs jax 0.11")
IMPL = "mosaic_gpu_interpret"
HANGS = 300  # seconds: a pipeline whose barriers do not match waits for ever


@pytest.fixture(autouse=True)
def _no_waiting():
    faulthandler.dump_traceback_later(HANGS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def _drawn(length, gates="none", **told):
    return drawn(length, gates, dtype="bfloat16", **told)


def _check(told, **options):
    agree(by_driver(told, IMPL, **options), by_steps(told, **options), TOLERANCE["bfloat16"] / 2)


def _cleared(length):
    """At both ends, side by side, and about where chunks meet."""
    resets = np.zeros((2, length), bool)
    resets[0, [5, 31, 32, 63, length - 1]] = resets[1, [0, 1, 47, 64]] = True
    return resets


@needs_mosaic_gpu
def test_one_chunk_that_is_not_whole():
    _check(_drawn(7))


@needs_mosaic_gpu
def test_decays_over_three_chunks():
    _check(_drawn(130, "scalar"))


@needs_mosaic_gpu
def test_what_was_before_is_read_in_reverse_and_cleared():
    _check(_drawn(130, "scalar"), inclusive=False, reverse=True, resets=_cleared(130))


@needs_mosaic_gpu
def test_states_are_cleared_without_decays_and_sums_are_normalised():
    _check(_drawn(65, normalise=True, state=False), normalise=True, resets=_cleared(65))


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize("gates", ["none", "scalar"])
@pytest.mark.parametrize(("size", "values"), [(64, 130), (70, 40), (128, 128)])
def test_keys_of_two_strips_and_values_in_parts(gates, size, values):
    told = _drawn(100, gates, size=size, values=values)
    _check(told, inclusive=False)
    _check(told, resets=_cleared(100))


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize(
    ("at", "low"), [(slice(None), -80.0), (slice(5, None, 30), -np.inf), (slice(16, 80), -2.0), (slice(None), -1e-4)]
)
def test_extreme_decays(at, low, inclusive):
    told = _drawn(96, "scalar", decay=0.1)
    told["log_decay"] = np.array(told["log_decay"])
    told["log_decay"][:, at] = low
    _check(told, inclusive=inclusive)


@needs_mosaic_gpu
def test_nothing_of_what_is_cleared_is_left_by_rounding():
    """Not a bit, in neither outputs nor gradients, however large it was."""
    told = _drawn(90, "scalar", state=False, decay=1e-3)
    late = np.arange(90) >= 70
    slopes = late.astype(np.float32)[None, :, None, None]

    def weighed(told):
        return (linear_attention(**told, resets=np.arange(90) == 70, impl=IMPL)[0] * slopes).sum()

    large = {
        name: np.where(late.reshape(-1, *[1] * (x.ndim - 2)), x, 1e4 * x).astype(x.dtype) for name, x in told.items()
    }
    found, same = (jax.jit(jax.grad(weighed))(one) for one in (told, large))
    for name, x in found.items():
        np.testing.assert_array_equal(x, same[name])
        assert (np.asarray(x)[:, :70] == 0).all()
        assert np.asarray(x)[:, 71:].all()


@needs_mosaic_gpu
def test_replicas_are_what_each_is_alone():
    told = _drawn(65, "scalar")
    both = {name: np.stack([x, x[::-1]]) for name, x in told.items()}

    def slopes(told):
        def loss(told):
            o, state = linear_attention(**told, impl=IMPL)
            return jnp.sum(o.astype(jnp.float32)) + jnp.sum(jnp.square(state))

        return jax.grad(loss)(told)

    found = jax.vmap(slopes)(both)
    for at in (0, 1):
        alone = slopes({name: x[at] for name, x in both.items()})
        for name, x in alone.items():
            np.testing.assert_array_equal(found[name][at], x)


def test_two_factors_leave_what_a_decay_leaves():
    total = np.float32([0, -1e-7, -1e-4, -0.4, -0.5, -0.6, -20, -np.inf])
    x = np.full_like(total, 3)
    one, other = left(total)
    found = x * one + x * other
    np.testing.assert_allclose(found, 3 * np.exp(total.astype(np.float64)), rtol=2e-7)
    np.testing.assert_array_equal(found, kept(x, total))
    assert (np.asarray((one == 1) | (one > 0) | (other == 0))).all()


@needs_mosaic_gpu
@pytest.mark.parametrize(
    ("change", "told", "why"),
    [
        ({"dtype": "float32"}, {}, "q is float32"),
        ({"dtype": "float16"}, {}, "q is float16"),
        ({"gates": "key"}, {}, "log_decay is one of each channel"),
        ({"gates": "scalar and value"}, {}, "value_log_decay is one of each channel"),
        ({"size": 144}, {}, "the head size of q is 144, above 128"),
        ({}, {"chunk": 32}, "chunk = 32, and these kernels take 64"),
    ],
)
def test_what_is_refused(change, told, why):
    with pytest.raises(ConfigError, match=why):
        linear_attention(**drawn(9, **{"dtype": "bfloat16", **change}), **told, impl=IMPL)


def test_the_chip_is_asked_for_by_name():
    with pytest.raises(ConfigError, match="the platform is cpu"):
        linear_attention(**_drawn(9), impl="mosaic_gpu")


@needs_mosaic_gpu
def test_by_name_it_is_chosen_on_the_chip():
    assert linear_choice(**_drawn(9), impl="mosaic_gpu", platform="gpu", chunk=64).driver.name == "mosaic_gpu"


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="this jax has it")
def test_older_jax_is_refused():
    with pytest.raises(ConfigError, match=r"Mosaic GPU needs 0\.11"):
        linear_attention(**_drawn(9), impl=IMPL)


def test_no_ladder_takes_it():
    problem = posed(**_drawn(9))
    names = [driver.name for platform in ("cpu", "gpu", "tpu") for driver, _ in ladder(problem, platform)]
    assert not [name for name in names if name.startswith("mosaic_gpu")]


def test_what_it_does_not_refuse_is_compiled():
    compiled = [case.name for case in RECURRENCES if "mosaic_gpu" in case.drivers]
    assert compiled == [
        "recurrence forward",
        "recurrence reversed",
        "recurrence",
        "recurrence cleared",
        "recurrence replicas",
        "delta rule forward",
        "delta rule with decays",
        "delta rule replicas",
    ]
    assert all(
        case.takes("mosaic_gpu", "bfloat16") and not case.takes("mosaic_gpu", "float16")
        for case in RECURRENCES
        if "mosaic_gpu" in case.drivers
    )
