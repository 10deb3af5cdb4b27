"""The Mosaic GPU kernels of the delta rule against its steps in float64, in jax's interpreter; and what they refuse."""

import faulthandler

import jax
import numpy as np
import pytest
from delta_oracle import TOLERANCE, agree, by_formula, drawn, gate, state, with_gradients

from positionbias.errors import ConfigError
from positionbias.kernels import delta_rule, linear_memory
from positionbias.kernels.delta_recurrence import chunk as algebra
from positionbias.kernels.delta_recurrence.call import posed_delta
from positionbias.kernels.delta_recurrence.ladder import ladder
from positionbias.kernels.delta_recurrence.reference import delta_rule_reference

needs_mosaic_gpu = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="Mosaic GPU needs jax 0.11")
IMPL = "mosaic_gpu_interpret"
HANGS = 300  # seconds: a pipeline whose barriers do not match waits for ever


@pytest.fixture(autouse=True)
def _no_waiting():
    faulthandler.dump_traceback_later(HANGS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def _drawn(length, decay=None, begins=True, dtype="bfloat16", **told):
    params = drawn(length, dtype=dtype, **told)
    params["strength"] = gate(params, 0, 1)
    if decay is not None:
        params["log_decay"] = gate(params, -decay, 0, seed=3)
    return params | ({"initial_state": state(params)} if begins else {})


def _check(params, **more):
    found = with_gradients(lambda **told: delta_rule(**told, **more, impl=IMPL), params)
    agree(found, by_formula(lambda **told: delta_rule_reference(**told, **more), params), TOLERANCE["bfloat16"])


@needs_mosaic_gpu
def test_one_chunk_that_is_not_whole():
    _check(_drawn(7))


@needs_mosaic_gpu
def test_decays_over_three_chunks():
    _check(_drawn(130, 1.0))


@needs_mosaic_gpu
def test_a_state_is_cleared_before_a_step():
    resets = np.zeros((2, 130), bool)
    resets[0, [5, 31, 63, 129]] = resets[1, [0, 1, 47, 64]] = True
    _check(_drawn(130, 0.1, begins=False), resets=resets)


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize("decay", [None, 0.01, 30.0])
@pytest.mark.parametrize(("size", "values"), [(64, 130), (70, 40), (128, 128)])
def test_keys_of_two_strips_and_values_in_parts(decay, size, values):
    _check(_drawn(100, decay, size=size, values=values))


def test_the_parts_of_a_chunk_make_its_outputs_and_its_state():
    """As `delta` does, also where states are cleared, and with gradients of all."""
    params = _drawn(16, 0.5, dtype="float32", batch=1, heads=1)
    q, k, v = (params[name][0, :, 0] for name in "qkv")
    gates = np.stack([params[name][0, :, 0] for name in ("strength", "log_decay")], axis=-1)
    gates[5, 1] = -200

    def whole(q, k, v, gates, state):
        o, (last,) = algebra.delta(q, k, v, gates, state)
        return o, last

    def parted(q, k, v, gates, state):
        of = algebra.parts(q, k, v, gates)
        written = of.ahead - of.corrects @ state
        return of.reads @ state + of.near @ written, state * of.keep + state * of.lost + of.until.T @ written

    for scale in (1, 1e-3, 1e-5):  # of the logarithms: what is left is less than half, more than half, and nearly all
        given = (q, k, v, gates * np.float32([1, scale]), params["initial_state"][0, 0])
        (found, back), (known, back_known) = (jax.vjp(function, *given) for function in (parted, whole))
        agree(found, known)
        agree(back(known), back_known(known))


@needs_mosaic_gpu
@pytest.mark.parametrize(
    ("change", "told", "why"),
    [
        ({"dtype": "float32"}, {}, "q is float32"),
        ({"dtype": "float16"}, {}, "q is float16"),
        ({"size": 144}, {}, "the head size of q is 144, above 128"),
        ({}, {"chunk": 32}, "chunk = 32, and these kernels take 64"),
    ],
)
def test_what_is_refused(change, told, why):
    with pytest.raises(ConfigError, match=why):
        delta_rule(**_drawn(9, **change), **told, impl=IMPL)


@needs_mosaic_gpu
def test_a_memory_is_refused():
    params = drawn(9, dtype="bfloat16")
    gates = {name: gate(params, 0, 1) for name in ("rate", "momentum", "forget")}
    with pytest.raises(ConfigError, match="these kernels compute the delta rule alone"):
        linear_memory(**params, **gates, chunk=64, impl=IMPL)


def test_the_chip_is_asked_for_by_name():
    with pytest.raises(ConfigError, match="the platform is cpu"):
        delta_rule(**_drawn(9), impl="mosaic_gpu")


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="this jax has it")
def test_older_jax_is_refused():
    with pytest.raises(ConfigError, match=r"Mosaic GPU needs 0\.11"):
        delta_rule(**_drawn(9), impl=IMPL)


def test_no_ladder_takes_it():
    params = _drawn(9)
    problem = posed_delta(*(params[name] for name in "qkv"), {"strength": params["strength"]})
    names = [driver.name for platform in ("cpu", "gpu", "tpu") for driver, _ in ladder(problem, platform)]
    assert not [name for name in names if name.startswith("mosaic_gpu")]
