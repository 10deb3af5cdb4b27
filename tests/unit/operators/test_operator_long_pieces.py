"""Operators that go by pieces, of sequences that are shorter than one: what that costs, and what is seen."""

import jax
import numpy as np
import pytest

from positionbias import costs, spec
from positionbias.masks.order import Causal
from positionbias.operators import choosing
from positionbias.tokens import sequential

T = 24


def operator(text):
    return spec.build("operators", text, "operator")


def multiplied(text, length=T):
    """Products of a call, forwards."""
    one = operator(text)
    shapes = jax.eval_shape(lambda: costs.drawn(one, costs.dims_of(length)))
    return costs.products(jax.make_jaxpr(costs.forward(one, length))(shapes))


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("titans(chunk={})", 256),
        ("titans(memory='mlp', chunk={})", 256),
        ("titans('mac', chunk={})", 256),
        ("chunk_hybrid(chunk={})", 256),
        ("combiner(span={})", 0),
        ("combiner(span={})", 256),
        ("combiner('axial', span={}, causal=False)", 0),
        ("combiner('axial', span={}, causal=False)", 256),
        ("routing(region={})", 0),
    ],
)
def test_a_piece_longer_than_the_sequence_costs_no_more_the_longer_it_is(text, least, monkeypatch):
    monkeypatch.setattr(choosing, "LONG", least)
    assert multiplied(text.format(2048)) == multiplied(text.format(T + 1))


def test_only_samples_of_a_window_longer_than_the_sequence_cost(monkeypatch):
    monkeypatch.setattr(choosing, "LONG", 0)
    assert multiplied("varied_window(width=2048)") <= 2048 / T * multiplied(f"varied_window(width={T})")


def test_a_window_longer_than_the_sequence_is_the_sequence(monkeypatch):
    monkeypatch.setattr(choosing, "LONG", 0)
    arrays = costs.drawn(operator("superlinear"), costs.dims_of(T))
    found = [
        jax.jit(costs.forward(operator(f"superlinear(inside={inside})"), T))(arrays)
        for inside in (5, 2**31 - 1)  # the window has 35 tokens, or more than there are numbers of 32 bits
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("side", ["back", "front"])
def test_spans_longer_than_the_sequence_are_the_sequence(side, monkeypatch):
    tokens = sequential(T)
    longest, huge = (operator(f"superlinear(inside=1, {side}={size})") for size in (float(T), 1e300))
    allowed = Causal().dense(tokens, tokens)
    np.testing.assert_array_equal(*(one.visible(tokens, tokens, allowed) for one in (longest, huge)))
    arrays = costs.drawn(longest, costs.dims_of(T))
    for least in (0, 256):
        monkeypatch.setattr(choosing, "LONG", least)
        found = [jax.jit(costs.forward(one, T))(arrays) for one in (longest, huge)]
        np.testing.assert_array_equal(*found)
