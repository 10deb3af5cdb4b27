"""The formula itself against loops over single entries, and by differences of its own loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_oracle import Case, drawn, with_gradients

from positionbias.kernels.softmax_attention.reference import attention_reference


def looped(params, seen, normalise, blocks, keep):
    """Everything an entry at a time: o [B, T, N, K], and lse, received, entropy, mean position and block mass."""
    q, k, v = (params[name].astype(float) for name in "qkv")
    (batch, rows, heads, size), columns, repeats = q.shape, k.shape[1], q.shape[2] // k.shape[2]
    tiles = -(-rows // blocks[0]), -(-columns // blocks[1])
    o, lse = np.zeros((batch, rows, heads, v.shape[-1])), np.full((batch, heads, rows), -1e30)
    received, entropy, place = np.zeros((batch, heads, columns)), lse * 0, lse * 0
    mass = np.zeros((batch, heads, *tiles))
    for b, i, n in np.ndindex(batch, rows, heads):
        visible = [j for j in range(columns) if seen[b, n, i, j]]
        scores = {j: q[b, i, n] @ k[b, j, n // repeats] / math.sqrt(size) for j in visible}
        total = math.fsum(math.exp(s) for s in scores.values())
        lse[b, n, i] = math.log(total) if visible else -1e30
        for j in visible:
            a = math.exp(scores[j]) / (total if normalise else 1)
            o[b, i, n] += a * keep[b, n, i, j] * v[b, j, n // repeats]
            received[b, n, j] += a
            entropy[b, n, i] -= a * math.log(a)
            place[b, n, i] += a * j
            mass[b, n, i // blocks[0], j // blocks[1]] += a
    return o, lse, received, entropy, place, mass


@pytest.mark.parametrize("normalise", [True, False])
def test_the_formula_is_that_of_loops(normalise):
    params, random = drawn(5, 7, heads=4, groups=2, size=3, values=2), np.random.default_rng(0)
    seen, keep = random.random((2, 4, 5, 7)) < 0.6, random.random((2, 4, 5, 7))
    seen[0, :, 2] = False
    with jax.enable_x64(True):
        o, stats = attention_reference(*params.values(), seen, keep=keep, normalise=normalise, block_sizes=(2, 3))
    assert o.dtype == jnp.float64
    for one, other in zip((o, *stats), looped(params, seen, normalise, (2, 3), keep), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_the_case_of_a_test_is_that_of_loops():
    """What tests say of masks and scores comes through to the formula."""
    params = drawn(5, 7, heads=2, groups=1, size=3)
    case = Case(lambda _: lambda b, h, q, k: k <= q + h, lambda _: lambda s, b, h, q, k: s + 0 * b)
    seen = np.arange(7) <= np.arange(5)[:, None] + np.arange(2)[:, None, None]
    with jax.enable_x64(True):
        o, _ = case.by_formula(params)
    known = looped(params, np.broadcast_to(seen, (2, 2, 5, 7)), True, (5, 7), np.ones((2, 2, 5, 7)))[0]
    np.testing.assert_allclose(o, known, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stat", ["o", "lse", "received", "entropy", "mean_position", "block_mass"])
def test_gradients_of_the_formula_are_those_of_differences(stat):
    params = drawn(5, 7, heads=2, groups=1, size=3)
    seen = np.random.default_rng(0).random((2, 2, 5, 7)) < 0.6
    seen[0, :, 2] = False
    with jax.enable_x64(True):
        wide = {name: x.astype(np.float64) for name, x in params.items()}

        def compute(p):
            return attention_reference(p["q"], p["k"], p["v"], seen, block_sizes=(2, 3))

        run = jax.jit(with_gradients(compute, (stat,)))
        gradients = run(wide)[1]
        slopes = np.cos(1.7 * np.arange(run(wide)[0][stat].size) + len(stat)).astype(np.float32)
        random = np.random.default_rng(1)
        for name in "qkv":
            way = random.normal(size=wide[name].shape)
            ends = [run(wide | {name: wide[name] + sign * 1e-5 * way})[0][stat] for sign in (1, -1)]
            found = ((ends[0] - ends[1]).ravel() @ slopes) / 2e-5
            np.testing.assert_allclose((gradients[name] * way).sum(), found, rtol=1e-6, atol=1e-7)
