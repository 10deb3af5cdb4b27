"""Recurrences on the chip: every driver that can run there, against single steps in float64 on the CPU."""

import functools

import delta_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrence_oracle

from positionbias.errors import ConfigError
from positionbias.kernels import delta_rule, linear_memory
from positionbias.kernels.delta_recurrence.ladder import DRIVERS as CORRECTED
from positionbias.kernels.delta_recurrence.reference import delta_rule_reference, linear_memory_reference
from positionbias.kernels.linear_recurrence.ladder import DRIVERS

PLATFORM = jax.default_backend()
pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(PLATFORM == "cpu", reason="there is no GPU or TPU"),
]
TYPES = ["bfloat16", "float32"]
TOLERANCE = {"bfloat16": 4e-2, "float32": 1e-4}  # of the largest entry, as of attention
LENGTHS = [64, 130, 300]
CHUNK = 20  # of the memory: no whole number of tiles
CASES = {
    "no decay": ("none", {}),
    "a decay a head": ("scalar", {}),
    "a decay a channel": ("key", {}),
    "decays of keys and values": ("key and value", {}),
    "divided by the sum of keys": ("scalar", {"normalise": True}),
    "in reverse, of what was before": ("scalar", {"reverse": True, "inclusive": False}),
}


def on_chip(drivers):
    return [name for name in drivers if "interpret" not in name]


def on_cpu():
    """Where there is float64."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def or_skip(compute):
    """What a driver makes; skips with the reason if it cannot."""
    try:
        return compute()
    except ConfigError as error:
        pytest.skip(str(error))


@functools.cache
def linear_case(case, length, kind):
    """Arguments, and what steps in float64 make of them."""
    gates, options = CASES[case]
    told = recurrence_oracle.drawn(
        length, gates, normalise="normalise" in options, size=64, values=32, dtype=kind, decay=0.1
    )
    with on_cpu():
        return told, recurrence_oracle.by_steps(told, **options)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("driver", on_chip(DRIVERS))
def test_linear_attention(driver, kind, case, length):
    told, known = linear_case(case, length, kind)
    with jax.default_matmul_precision("highest"):
        found = or_skip(lambda: recurrence_oracle.by_driver(told, driver, **CASES[case][1]))
    recurrence_oracle.agree(found, known, TOLERANCE[kind])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("driver", on_chip(DRIVERS))
def test_a_state_that_is_cleared(driver, kind):
    told = recurrence_oracle.drawn(130, "scalar", size=64, values=32, dtype=kind, decay=0.1)
    resets = np.zeros((2, 130), bool)
    resets[0, [5, 63, 64, 129]] = resets[1, [0, 1, 77]] = True
    with on_cpu():
        known = recurrence_oracle.by_steps(told, resets=resets)
    found = or_skip(lambda: recurrence_oracle.by_driver(told, driver, resets=resets))
    recurrence_oracle.agree(found, known, TOLERANCE[kind])


@functools.cache
def corrected_case(which, length, kind):
    """Arguments, a function of a driver, and what steps in float64 make of the arguments."""
    told = delta_oracle.drawn(length, size=64, values=32, dtype=kind)
    if which == "memory":
        ends = {"rate": (0, 0.2), "momentum": (0, 0.9), "forget": (0, 0.1)}
        told |= {name: delta_oracle.gate(told, *two, seed=i) for i, (name, two) in enumerate(ends.items())}
        started = [delta_oracle.state(told, seed) for seed in (2, 3)]
        told["initial_state"] = tuple(started)
        call, formula = (functools.partial(one, chunk=CHUNK) for one in (linear_memory, linear_memory_reference))
    else:
        told["strength"] = delta_oracle.gate(told, 0, 1)
        told["initial_state"] = delta_oracle.state(told)
        if which == "gated":
            told["log_decay"] = -delta_oracle.gate(told, 0, 0.2, seed=4)
        call, formula = delta_rule, delta_rule_reference
    with on_cpu():
        return told, call, delta_oracle.by_formula(formula, told)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("which", ["plain", "gated", "memory"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("driver", on_chip(CORRECTED))
def test_corrected_recurrences(driver, kind, which, length):
    told, call, known = corrected_case(which, length, kind)
    given = jax.tree.map(jnp.asarray, told)
    found = or_skip(lambda: delta_oracle.with_gradients(functools.partial(call, impl=driver), given))
    delta_oracle.agree(found, known, TOLERANCE[kind])


@pytest.mark.parametrize("kind", TYPES)
def test_the_ladder_chooses_what_can(kind):
    told, known = linear_case("a decay a head", 130, kind)
    recurrence_oracle.agree(recurrence_oracle.by_driver(told), known, TOLERANCE[kind])
    told, call, known = corrected_case("gated", 130, kind)
    delta_oracle.agree(delta_oracle.with_gradients(call, told), known, TOLERANCE[kind])
