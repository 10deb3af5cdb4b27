"""Attention rollout against the exact table for content-free attention at T = 32."""

import numpy as np
import pytest

from positionbias.masks.order import Causal, SlidingWindow
from positionbias.positions.distance import Decay
from positionbias.theory.rollout import attention, influence, rollout
from positionbias.tokens import sequential

TOKENS = sequential(32)
CAUSAL = Causal().dense(TOKENS, TOKENS)
DEPTHS = (1, 2, 4, 8, 16, 32, 64)

# (weight on column 0; mean source index) of the last row by depth.
TABLE = {
    "uniform": [(0.031, 15.5), (0.127, 7.75), (0.463, 1.94), (0.917, 0.12), (1.0, 0), (1.0, 0), (1.0, 0)],
    0.1: [(0.004, 22.9), (0.026, 16.1), (0.171, 6.95), (0.695, 0.87), (0.994, 0.01), (1.0, 0), (1.0, 0)],
    0.5: [(0, 29.5), (0, 27.9), (0, 24.8), (0.003, 18.7), (0.147, 7.6), (0.930, 0.18), (1.0, 0)],
    1.0: [(0, 30.4), (0, 29.8), (0, 28.7), (0, 26.3), (0, 21.7), (0.018, 12.4), (0.773, 0.86)],
    "window": [(0, 29.5), (0, 28.0), (0, 25.0), (0, 19.0), (0.060, 7.1), (0.994, 0.01), (1.0, 0)],
}


def setting(name):
    if name == "uniform":
        return CAUSAL, None
    if name == "window":
        return (Causal() & SlidingWindow(4)).dense(TOKENS, TOKENS), None
    bias = Decay(gamma=float(np.exp(-name))).bias(TOKENS.rows(), TOKENS.columns(), 1, {})
    return CAUSAL, np.asarray(bias)[0]


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    for depth, (first, mean) in zip(DEPTHS, TABLE[name], strict=True):
        last = rollout(*setting(name), depth)[-1]
        assert last[0] == pytest.approx(first, abs=0.0006), depth
        # The table prints three digits: half a unit of the last one.
        assert last @ np.arange(32) == pytest.approx(mean, abs=0.051 if mean > 2 else 0.0051), depth


def test_rows_are_distributions():
    for residual in (False, True):
        np.testing.assert_allclose(rollout(CAUSAL, None, 3, residual).sum(axis=-1), 1, rtol=1e-12)


def test_residual_mixes_half_with_the_identity():
    two = np.tri(2, dtype=bool)
    np.testing.assert_allclose(rollout(two, None, 1, residual=True), [[1, 0], [0.25, 0.75]])
    np.testing.assert_allclose(rollout(two, None, 2, residual=True), [[1, 0], [0.4375, 0.5625]])


def test_a_row_that_sees_nothing_is_zero_and_stays_itself_with_a_residual():
    allowed = np.array([[False, False], [True, True]])
    np.testing.assert_array_equal(attention(allowed, None), [[0, 0], [0.5, 0.5]])
    np.testing.assert_array_equal(rollout(allowed, None, 1, residual=True)[0], [1, 0])


def test_a_large_bias_does_not_overflow():
    bias = np.array([[0.0, 0.0], [0.0, 1000.0]])
    np.testing.assert_array_equal(attention(np.tri(2, dtype=bool), bias), [[1, 0], [0, 1]])


def summed(layers, normed):
    """Influence by its definition, of matrices drawn four hundred times: the mean square of outputs' slopes."""
    noise, (length, width) = np.random.default_rng(0), (layers[0].shape[-1], 32)
    total = np.zeros((length, length))
    for _ in range(400):
        slope = np.einsum("ij,de->ijde", np.eye(length), np.eye(width))  # of row i's features by those of input j
        for heads in layers:
            if normed:
                slope = slope / np.sqrt(np.mean(np.square(slope), axis=(1, 2, 3), keepdims=True))
            maps = noise.normal(size=(len(heads), width, width)) / np.sqrt(width)
            slope = sum(np.einsum("im,mjde,df->ijfe", head, slope, one) for head, one in zip(heads, maps, strict=True))
        total += np.sum(np.square(slope), axis=(2, 3))
    return total / total.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("normed", [False, True])
def test_influence_is_the_mean_square_of_slopes_over_random_matrices(normed):
    tokens = sequential(5)
    allowed = Causal().dense(tokens, tokens)
    biases = Decay(gamma=0.5).bias(tokens.rows(), tokens.columns(), 1, {})[0], None
    heads = np.stack([attention(allowed, None if bias is None else np.asarray(bias)) for bias in biases])
    layers = [heads, heads[1:]]
    np.testing.assert_allclose(influence(layers, normed), summed(layers, normed), atol=0.02)


def test_influence_of_one_layer_by_hand():
    allowed = np.tri(3, dtype=bool)
    np.testing.assert_allclose(
        influence([attention(allowed, None)[None]], True), [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3]
    )


def test_a_norm_counts_means_of_many_inputs_as_much_as_single_ones():
    # Row 1 is the mean of both inputs, of size 1 / sqrt 2; brought to size 1 it adds more to what the next layer reads.
    step = np.array([[[1, 0], [0.5, 0.5]]])
    plain, half = np.array([0.75, 0.25]) ** 2, np.sqrt(0.5)
    np.testing.assert_allclose(influence([step, step], False)[1], plain / plain.sum())
    normed = np.array([0.5 + half / 2, half / 2]) ** 2
    np.testing.assert_allclose(influence([step, step], True)[1], normed / normed.sum())


def test_heads_that_are_alike_are_one_path_and_rows_that_see_nothing_are_zero():
    step = attention(np.array([[False, False], [True, True]]), None)
    found = influence([np.stack([step] * 4)] * 30, True)  # 4 to the 30th paths if each counted
    np.testing.assert_allclose(found, [[0, 0], [0.5, 0.5]])
