"""Titans' linear memory by every driver: against its formula in float64, and what the formula implies."""

import jax
import numpy as np
import pytest
from delta_oracle import TOLERANCE, agree, by_formula, compiled, drawn, drivers, gate, state, with_gradients

from positionbias.errors import ConfigError
from positionbias.kernels import delta_rule, linear_attention, linear_memory
from positionbias.kernels.delta_recurrence.reference import linear_memory_reference


def check(params, chunk, valid=None, tolerance=TOLERANCE["float32"]):
    more = {} if valid is None else {"valid": valid}
    known = by_formula(linear_memory_reference, params, more, chunk=chunk)
    for impl in drivers():
        found = with_gradients(linear_memory, params, more, chunk=chunk, impl=impl)
        assert found[0][0].dtype == params["v"].dtype
        assert {x.dtype for x in found[0][1]} == {np.dtype(np.float32)}
        agree(found, known, tolerance)


def whole(length, dtype="float32"):
    params = drawn(length, dtype=dtype)
    gates = {"rate": gate(params, 0, 0.1), "momentum": gate(params, 0, 0.9, 3), "forget": gate(params, 0, 0.2, 4)}
    return params | gates | {"initial_state": (state(params), state(params, 5))}


@pytest.mark.parametrize("length", [1, 7, pytest.param(63, marks=pytest.mark.slow), 65, 130])
def test_lengths(length):
    check(whole(length), 16)


@pytest.mark.parametrize("chunk", [1, 4, 65, 200])
def test_chunks(chunk):
    check(whole(65), chunk)


def test_without_an_initial_state():
    params = whole(37)
    del params["initial_state"]
    check(params, 8)


def test_bfloat16():
    check(whole(65, "bfloat16"), 16, tolerance=TOLERANCE["bfloat16"])


@pytest.mark.parametrize("momentum", [0.5, 1 - 1e-4])
def test_what_is_forgotten_slowly_is_as_precise_over_many_steps(momentum):
    # A number just below 1 is rounded by up to 2^-25. Where all of them are the same, that adds up: to 1e-4 here.
    params = whole(4096)
    told = {"rate": 1e-3, "momentum": momentum, "forget": 1e-4}
    check(params | {name: np.full_like(params[name], x) for name, x in told.items()}, 16)


def test_ends_of_the_ranges():
    params = whole(65)
    random = np.random.default_rng(6)
    for name, ends in (("momentum", (0, 1)), ("forget", (0, 1)), ("rate", (0,))):
        for end in ends:
            params[name][random.random(params[name].shape) < 0.15] = end
    check(params, 16)


@pytest.mark.parametrize("shape", [(37,), (2, 37)], ids=str)
def test_steps_that_are_not_valid(shape):
    valid = np.random.default_rng(7).random(shape) < 0.6
    check(whole(37), 8, np.broadcast_to(valid, (2, 37)))
    params = whole(37)
    call = compiled(linear_memory, chunk=8)
    found, same = (call(**params, valid=v) for v in (valid, np.broadcast_to(valid, (2, 37))))
    jax.tree.map(np.testing.assert_array_equal, found, same)


def test_what_is_in_steps_that_are_not_valid_changes_no_state():
    params, valid = whole(20), np.arange(20) < 13
    other = {
        name: np.where(valid.reshape(-1, *[1] * (x.ndim - 2)), x, 0.7)
        for name, x in params.items()
        if name[0] in "qkvrmf"
    }
    found = [compiled(linear_memory, chunk=8)(**params | more, valid=valid)[1] for more in ({}, other)]
    jax.tree.map(np.testing.assert_array_equal, *found)
    before = {name: x[:, :13] for name, x in params.items() if name != "initial_state"}
    cut = compiled(linear_memory, chunk=8)(**before, initial_state=params["initial_state"])[1]
    agree(found[0], cut, 2e-6)


@pytest.mark.parametrize("impl", drivers())
def test_forget_1_clears_the_memory(impl):
    params = whole(21)
    # What step 16 knows of the past beside the memory is its momentum, and the gradient at the memory before it.
    for name, value in (("forget", 1), ("momentum", 0), ("rate", 0)):
        params[name][:, 16] = value
    later = {name: x[:, 16:] for name, x in params.items() if name != "initial_state"}
    found = compiled(linear_memory, chunk=1, impl=impl)(**params)
    wanted = compiled(linear_memory, chunk=1, impl=impl)(**later)
    agree((found[0][:, 16:], found[1]), wanted, 2e-6)
    np.testing.assert_array_equal(found[0][:, 16], 0)


@pytest.mark.parametrize("impl", drivers())
def test_without_momentum_a_chunk_of_1_is_the_gated_delta_rule(impl):
    params = whole(40)
    rate, left = params["rate"], 1 - params["forget"]
    zeros = np.zeros_like(rate)
    start = params["initial_state"][0]
    given = {**params, "momentum": zeros, "initial_state": (start, np.zeros_like(start))}
    o, (last, _) = compiled(linear_memory, chunk=1, impl=impl)(**given)
    strength = 2 * rate / left
    rows = {"q": params["q"], "k": params["k"], "v": params["v"] * left[..., None]}
    told = {**rows, "strength": strength, "log_decay": np.log(left), "initial_state": start}
    wanted = compiled(delta_rule, impl=impl)(**told)
    agree((o, last), wanted, 4e-6)


@pytest.mark.parametrize("impl", drivers())
def test_one_chunk_without_a_memory_before_it_is_a_recurrence_that_corrects_nothing(impl):
    params = whole(40)
    rows = {name: params[name] for name in ("q", "k", "v", "rate", "forget")}
    call = compiled(linear_memory, chunk=40, impl=impl)
    o, (last, _) = call(**rows, momentum=np.zeros_like(params["rate"]))
    keys = params["k"] * 2 * params["rate"][..., None]
    told = {"q": params["q"], "k": keys, "v": params["v"], "log_decay": np.log(1 - params["forget"])}
    agree((o, last), compiled(linear_attention)(**told), 4e-6)


@pytest.mark.parametrize("impl", drivers())
def test_a_sequence_cut_where_a_chunk_ends_is_the_whole(impl):
    params = whole(40)
    rows = {name: x for name, x in params.items() if name != "initial_state"}
    call, first_call = compiled(linear_memory, chunk=8, impl=impl), compiled(linear_memory, chunk=8)
    whole_o, whole_states = call(**params)
    first = first_call(**{n: x[:, :16] for n, x in rows.items()}, initial_state=params["initial_state"])
    second = call(**{n: x[:, 16:] for n, x in rows.items()}, initial_state=first[1])
    agree((second[0], second[1]), (whole_o[:, 16:], whole_states), 2e-6)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"chunk": None}, "chunk = None is not allowed; allowed: a whole number from 1."),
        ({"forget": np.ones((2, 6, 1), np.float32)}, r"forget is float32 \[2, 6, 1\]; allowed: .*\[2, 6, 2\]"),
        ({"initial_state": np.ones((2, 2, 8, 6))}, "initial_state is no pair; allowed: "),
        ({"valid": np.ones((2, 6), int)}, r"valid is int64 \[2, 6\]; allowed: booleans"),
        ({"valid": np.ones(5, bool)}, r"valid is bool \[5\]; allowed: booleans \[T\] or \[B, T\]"),
        ({"valid": [True] * 6}, "valid is a list; allowed: booleans"),
    ],
)
def test_what_is_refused(told, why):
    with pytest.raises(ConfigError, match=why):
        linear_memory(**{**whole(6), "chunk": 4, **told})
