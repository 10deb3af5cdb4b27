"""Softmax and raw-score attention against float64 loops, in value and in gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Reads

from positionbias import spec
from positionbias.models.sites import Sites
from positionbias.operators.linear_scores import LinearScores
from positionbias.operators.softmax import Softmax, masked_softmax
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential

CASES = {
    "causal": ("causal", "none", 7, 7),
    "alibi": ("causal", "alibi", 5, 5),
    "rope": ("bidirectional", "rope", 6, 6),
    "window": ("causal & sliding_window(2)", "decay(gamma=0.5)", 9, 9),
    "ragged cross": ("bidirectional", "alibi", 4, 7),
    "row without keys": ("~causal", "none", 6, 6),
    "padding": ("bidirectional", "none", 5, 5),
}
OPERATORS = [Softmax(), Softmax(scaled=False), LinearScores(), LinearScores(scaled=True)]


def setting(name):
    mask, position, rows, columns = CASES[name]
    valid = np.arange(columns) < (3 if name == "padding" else columns)
    tokens_q = sequential(rows, **({"valid": valid} if name == "padding" else {}))
    tokens_k = sequential(columns, valid=valid)
    random = np.random.default_rng(0)
    # Two heads of size 4, values of size 3: nothing may rely on one shape for both.
    q, k, v = (random.normal(size=(2, n, 2, h)) for n, h in ((rows, 4), (columns, 4), (columns, 3)))
    built = spec.build("masks", mask, "mask"), spec.build("positions", position, "position")
    return (q, k, v), tokens_q, tokens_k, built[0], Placed(built[1])


def run(operator, arrays, tokens_q, tokens_k, mask, position):
    return operator(*arrays, tokens_q, tokens_k, mask, position, {}, Sites())


def turn(vector, at, position):
    """RoPE by complex numbers, independent of the package."""
    if spec.canonical(position.scheme) != "rope":
        return vector
    pairs = vector[0::2] + 1j * vector[1::2]
    pairs = pairs * np.exp(1j * at * 10000.0 ** (-np.arange(len(pairs)) * 2 / len(vector)))
    out = np.empty_like(vector)
    out[0::2], out[1::2] = pairs.real, pairs.imag
    return out


def loop(operator, arrays, tokens_q, tokens_k, mask, position, out_gradient):
    """Output and the gradients of sum(output * out_gradient), written out an entry at a time in float64."""
    q, k, v = arrays
    batch, rows, heads, size = q.shape
    columns = k.shape[1]
    seen = mask.dense(tokens_q, tokens_k)
    slopes = {"alibi": [2.0**-4, 2.0**-8], "decay(gamma=0.5)": [math.log(2)] * 2}
    slope = slopes.get(spec.canonical(position.scheme), [0.0, 0.0])
    scale = size**-0.5 if operator.scaled else 1.0
    out, dq, dk, dv = np.zeros((batch, rows, heads, v.shape[-1])), *(np.zeros_like(x) for x in arrays)
    for b in range(batch):
        for n in range(heads):
            for i in range(rows):
                keys = [j for j in range(columns) if seen[i, j]]
                if not keys:
                    continue
                qi = turn(q[b, i, n], i, position)
                ks = [turn(k[b, j, n], j, position) for j in keys]
                score = np.array([scale * qi @ kj - slope[n] * abs(i - j) for j, kj in zip(keys, ks, strict=True)])
                softmax = isinstance(operator, Softmax)
                weight = np.exp(score) / np.exp(score).sum() if softmax else score
                out[b, i, n] = sum(w * v[b, j, n] for w, j in zip(weight, keys, strict=True))
                g = out_gradient[b, i, n]
                dweight = np.array([g @ v[b, j, n] for j in keys])
                dscore = weight * (dweight - weight @ dweight) if softmax else dweight
                for w, ds, j, kj in zip(weight, dscore, keys, ks, strict=True):
                    dv[b, j, n] += w * g
                    # A rotation's gradient is the rotation back.
                    dq[b, i, n] += scale * ds * turn(kj, -i, position)
                    dk[b, j, n] += scale * ds * turn(qi, -j, position)
    return out, (dq, dk, dv)


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name, operator):
    arrays, *rest = setting(name)
    shape = (*arrays[0].shape[:3], arrays[2].shape[-1])
    gradient = np.random.default_rng(1).normal(size=shape)
    wanted, wanted_gradients = loop(operator, arrays, *rest, gradient)
    single = [jnp.asarray(x, jnp.float32) for x in arrays]
    found, back = jax.vjp(lambda *x: run(operator, x, *rest), *single)
    np.testing.assert_allclose(found, wanted, atol=3e-6)
    for one, other in zip(back(jnp.asarray(gradient, jnp.float32)), wanted_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    if name in ("row without keys", "padding"):
        empty = ~rest[2].dense(*rest[:2]).any(axis=1)
        assert empty.any()
        assert (np.asarray(found)[:, empty] == 0).all()
        assert (np.asarray(back(jnp.asarray(gradient, jnp.float32))[0])[:, empty] == 0).all()


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_bfloat16_keeps_scores_in_float32(operator):
    arrays, *rest = setting("causal")
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    found = run(operator, half, *rest)
    wanted, _ = loop(operator, [np.asarray(x, np.float64) for x in half], *rest, np.zeros((2, 7, 2, 3)))
    assert found.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: weights and the output are each rounded by at most 2^-9, the scores are not.
    bound = 2.0**-8 * np.abs(wanted).max() + 2.0**-8
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=bound)
    seen = []
    operator(*half, *rest, {}, Reads(lambda name, value: seen.append((name, value.dtype)) or value))
    assert seen == [("scores", jnp.float32), ("pattern", jnp.float32)]


@pytest.mark.parametrize("name", CASES)
def test_softmax_rows_sum_to_one_or_to_nothing(name):
    arrays, *rest = setting(name)
    kept = {}
    Softmax()(*map(jnp.asarray, arrays), *rest, {}, Reads(lambda name, value: kept.setdefault(name, value)))
    has_keys = rest[2].dense(*rest[:2]).any(axis=1)
    np.testing.assert_allclose(
        kept["pattern"].sum(axis=-1), np.broadcast_to(has_keys, kept["pattern"].shape[:3]), atol=1e-6
    )
    assert (np.asarray(kept["pattern"])[:, :, ~rest[2].dense(*rest[:2])] == 0).all()


def test_masked_softmax_is_finite_for_huge_scores_and_empty_rows():
    scores = jnp.array([[1e30, -1e30, 1e30], [5.0, 5.0, 5.0]])
    allowed = jnp.array([[True, True, True], [False, False, False]])
    np.testing.assert_allclose(masked_softmax(scores, allowed), [[0.5, 0, 0.5], [0, 0, 0]])
    gradient = jax.grad(lambda s: masked_softmax(s, allowed)[:, 0].sum())(scores)
    np.testing.assert_array_equal(gradient[1], [0, 0, 0])
    assert np.isfinite(gradient).all()


def test_the_pattern_can_be_edited():
    arrays, *rest = setting("causal")
    first = np.zeros((2, 2, 7, 7), np.float32)
    first[..., 0] = 1
    found = Softmax()(
        *map(jnp.asarray, arrays),
        *rest,
        {},
        Reads(lambda name, value: jnp.asarray(first) if name == "pattern" else value),
    )
    np.testing.assert_allclose(found, np.broadcast_to(np.float32(arrays[2][:, :1]), found.shape))


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_state_is_a_key_and_a_value_a_token_and_head(operator):
    assert operator.state_size(Dims(width=64, heads=4, head_size=16, length=10)) == 2 * 10 * 4 * 16
