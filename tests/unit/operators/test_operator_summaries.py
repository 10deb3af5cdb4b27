"""Combiner, reversed attention and varied windows against what they are at their ends, and by hand."""

import functools

import jax
import numpy as np
import pytest
from toys import Reads

from positionbias import spec
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites
from positionbias.operators.softmax import Softmax
from positionbias.operators.varied_window import samples
from positionbias.positions.base import Placed
from positionbias.tokens import sequential

NONE, ROPE = (Placed(spec.build("positions", name, "test")) for name in ("none", "rope"))
T, N, H = 10, 2, 4


def operator(text):
    return spec.build("operators", text, "test")


def arrays():
    return [np.random.default_rng(i).normal(size=(2, T, N, H)).astype(np.float32) for i in range(3)]


def mixed(one, mask, position=NONE, params=None, site=None):
    told = sequential(T), sequential(T), spec.build("masks", mask, "test"), position
    return jax.jit(lambda given, params: one(*given, *told, params, site or Sites()))(arrays(), params or {})


@functools.cache
def dense(mask):
    """What softmax makes of them under rotations."""
    return np.asarray(mixed(Softmax(), mask, ROPE))


def pattern(one, mask, params=None, given=None):
    told = sequential(T), sequential(T), spec.build("masks", mask, "test"), NONE

    def read(given, params):
        kept = {}
        one(*given, *told, params, Reads(lambda name, value: kept.setdefault(name, value)))
        return kept["pattern"]

    return np.asarray(jax.jit(read)(given or arrays(), params or {}))


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("form", ["fixed", "axial"])
@pytest.mark.parametrize("span", [1, T, 3 * T])
@pytest.mark.parametrize("causal", [True, False])
def test_spans_of_one_token_or_of_all_are_dense(form, span, pool, causal):
    mask = "causal" if causal else "bidirectional"
    one = operator(f"combiner({form!r}, span={span}, pool={pool!r}, causal={causal})")
    np.testing.assert_allclose(mixed(one, mask, ROPE), dense(mask), rtol=1e-5, atol=2e-6)


def test_segments_by_hand():
    q, k, _ = (np.asarray(x, np.float64) for x in arrays())
    found = pattern(operator("combiner(span=3)"), "causal")
    for b, n, i in np.ndindex(2, N, T):
        first = i // 3 * 3
        summands = [(k[b, j, n], {j: 1.0}) for j in range(first, i + 1)]
        for start in range(0, first, 3):
            rows = slice(start, start + 3)
            inner = np.exp(k[b, rows, n] @ q[b, rows, n].max(axis=0) / np.sqrt(H))
            inner = dict(zip(range(start, start + 3), inner / inner.sum(), strict=True))
            summands.append((k[b, rows, n].max(axis=0), inner))
        shares = np.exp([key @ q[b, i, n] / np.sqrt(H) for key, _ in summands])
        wanted = np.zeros(T)
        for share, (_, inner) in zip(shares / shares.sum(), summands, strict=True):
            for j, part in inner.items():
                wanted[j] += share * part
        np.testing.assert_allclose(found[b, n, i], wanted, atol=2e-6)


def test_logsparse_has_every_earlier_key_once():
    """With all keys alike each summand has one share, and each key of a block of 2^l the 2^l-th part of it."""
    found = pattern(operator("combiner('logsparse')"), "causal", given=[np.zeros((1, T, 1, H), np.float32)] * 3)
    for t in range(T):
        sizes = [2**level for level in range(4) if t >> level & 1]
        wanted = np.concatenate([*(np.full(n, 1 / n) for n in sizes[::-1]), [1.0]]) / (1 + len(sizes))
        np.testing.assert_allclose(found[0, 0, t, : t + 1], wanted, rtol=1e-5)


def test_reversed_attention_is_the_transpose_and_its_columns_are_what_is_sent():
    q, k, _ = (np.asarray(x, np.float64) for x in arrays())
    shares = np.exp(np.einsum("bjnh,binh->bnji", k, q) / np.sqrt(H))  # senders are rows here
    shares /= shares.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(pattern(operator("reversed"), "bidirectional"), shares.swapaxes(2, 3), atol=2e-6)
    params = {
        "selected": jax.random.uniform(jax.random.key(8), (2, T, N)),
        "sent": jax.random.uniform(jax.random.key(9), (2, T, 1)),
    }
    sent = pattern(operator("reversed(selector=True, gate=True)"), "bidirectional", params).sum(axis=2)
    np.testing.assert_allclose(sent, np.swapaxes(params["selected"] * params["sent"], 1, 2), rtol=1e-5)


def test_varied_windows_sample_between_tokens():
    one, width = operator("varied_window(width=4)"), 4
    stream = jax.random.normal(jax.random.key(7), (2, T, 6))
    params = {
        "place": np.asarray(jax.random.normal(jax.random.key(3), (6, 2 * N))),
        "place_bias": np.array([0.1, -0.2, 0.3, 0.5]),
        "table": np.asarray(jax.random.normal(jax.random.key(4), (N, 2 * width - 1))),
        "stream": stream,
    }
    found = pattern(one, "bidirectional", params)
    q, k, _ = (np.asarray(x, np.float64) for x in arrays())
    for b, n, i in np.ndindex(2, N, T):
        w = i // width
        mean = np.asarray(stream[b, w * width : (w + 1) * width]).mean(axis=0)
        told = np.where(mean > 0, mean, 0.01 * mean) @ params["place"] + params["place_bias"]
        at = w * width + 1.5 + (1 + told[n]) * (np.arange(width) - 1.5) + told[N + n] * width / 2
        near = np.maximum(0, 1 - abs(at[:, None] - np.arange(T)))
        scores = near @ k[b, :, n] @ q[b, i, n] / np.sqrt(H)
        scores += [params["table"][n, i % width - u + width - 1] for u in range(width)]
        np.testing.assert_allclose(found[b, n, i], np.exp(scores) / np.exp(scores).sum() @ near, atol=5e-6)


def test_a_sample_on_a_token_has_the_slope_between_it_and_the_next():
    """As windows lie at the start: moved by an offset o, the second sample of the first window by o width / 2."""
    one, valid = operator("varied_window(width=4)"), np.ones((1, T), bool)
    params = {"place": np.zeros((6, 2 * N)), "stream": np.ones((1, T, 6))}

    def second(offset):
        bias = np.zeros(2 * N, np.float32)
        low, part = one.places(params | {"place_bias": jax.numpy.asarray(bias).at[N].set(offset)}, valid)
        return samples(low, part, valid)[0, 0, 0, 1]

    np.testing.assert_array_equal(second(0.0), np.eye(T)[1])
    np.testing.assert_allclose(jax.jacrev(second)(0.0), 2 * (np.eye(T)[2] - np.eye(T)[1]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("combiner(span=0)", "span = 0 is not allowed; allowed: a whole number from 1"),
        ("combiner('logsparse', span=3)", "span = 3 is not allowed; allowed: None with form = 'logsparse'"),
        ("combiner('logsparse', causal=False)", "causal = False is not allowed; allowed: True with form = 'logsparse'"),
    ],
)
def test_refusals(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        operator(text)
