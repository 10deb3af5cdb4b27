"""Rollout against its exact values for attention without content."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.rollout import Rollout, rolled
from positionbias.theory.rollout import rollout

T = 32
CAUSAL = np.tri(T) / np.arange(1, T + 1)[:, None]


@pytest.mark.parametrize(
    ("depth", "first", "source"),
    [(1, 0.031, 15.5), (2, 0.127, 7.75), (4, 0.463, 1.94), (8, 0.917, 0.12), (16, 1.0, 0.0)],
)
def test_even_causal_attention_ends_in_the_first_token(depth, first, source):
    last = np.asarray(rolled(jnp.asarray(np.stack([CAUSAL] * depth), jnp.float32)))[-1, -1]
    assert last[0] == pytest.approx(first, abs=6e-4)
    assert last @ np.arange(T) == pytest.approx(source, abs=6e-3)


def test_layers_are_multiplied_in_their_order_and_told_one_by_one():
    random = np.random.default_rng(0)
    layers = np.exp(random.normal(size=(3, 5, 5))) * np.tri(5)
    layers /= layers.sum(axis=-1, keepdims=True)
    found = rolled(jnp.asarray(layers, jnp.float32))
    np.testing.assert_allclose(found[0], layers[0], atol=1e-6)
    np.testing.assert_allclose(found[2], layers[2] @ layers[1] @ layers[0], atol=1e-6)


def test_with_a_residual_half_of_a_row_is_itself():
    layers = np.stack([CAUSAL, CAUSAL])
    half = (CAUSAL + np.eye(T)) / 2
    found = rolled(jnp.asarray(layers, jnp.float32), residual=True)
    np.testing.assert_allclose(found[1], half @ half, atol=1e-6)


def test_even_attention_is_that_of_theory_for_the_mask(drawn_run):
    raw = {
        "name": "even",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=1)",
        "model": {"layers": 2, "width": 8, "heads": 2, "mask": "causal & sliding_window(3)"},
    }
    run = drawn_run(raw)
    condition = run.task.conditions()[0]
    found = Rollout().measure(Subject(run, condition, 4), [0, 1], jax.random.key(0))
    length = run.task.length(condition)
    row, column = np.indices((length, length))
    known = rollout((column <= row) & (column > row - 3), None, 2)[-1]
    np.testing.assert_allclose(found["even"][1], known, atol=1e-6)
    assert float(found["even_source"][1]) == pytest.approx(known @ np.arange(length), abs=1e-5)
    assert np.abs(found["influence"][1] - known).max() > 1e-3
