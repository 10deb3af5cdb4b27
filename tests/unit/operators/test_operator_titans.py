"""Titans against its definition in numpy: a memory that learns one token after another, in each of its places."""

import numpy as np
import pytest
from operators_oracle import DIMS, B, H, K, N, T, close, convolved, normed, setting, sigmoid, silu

from positionbias import spec
from positionbias.errors import ConfigError

CHUNK, WINDOW = 4, 3


def unit(x):
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-6)


class Linear:
    """A matrix, and the slope of |k M - v|^2."""

    def __init__(self, one):
        self.start = [np.broadcast_to(one.start, (B, N, H, K)).copy()]

    def read(self, held, x):
        return np.einsum("bnh,bnhk->bnk", x, held[0])

    def slope(self, held, k, v):
        return [2 * np.einsum("bnh,bnk->bnhk", k, self.read(held, k) - v)]


class Network(Linear):
    """W_2 silu(W_1 x), and the slopes of both matrices."""

    def __init__(self, one):
        self.start = [np.broadcast_to(x, (B, *x.shape)).copy() for x in (one.start_first, one.start_second)]

    def read(self, held, x):
        return np.einsum("bne,bnek->bnk", silu(np.einsum("bnh,bnhe->bne", x, held[0])), held[1])

    def slope(self, held, k, v):
        before = np.einsum("bnh,bnhe->bne", k, held[0])
        wrong = 2 * (self.read(held, k) - v)
        back = np.einsum("bnk,bnek->bne", wrong, held[1])
        bent = sigmoid(before) * (1 + before * (1 - sigmoid(before)))
        return [np.einsum("bnh,bne->bnhe", k, back * bent), np.einsum("bne,bnk->bnek", silu(before), wrong)]


def rates(one):
    begun = {"rate": -2.0 if one.operator.memory == "linear" else -4.0, "momentum": 0.0, "forget": -4.0}
    return [sigmoid(one.x @ getattr(one, name) + getattr(one, f"{name}_offset") + begun[name]) for name in begun]


def learn(memory, held, moved, begun, step):
    """The memory and its momentum after one more token."""
    k, v, rate, momentum, forget = step
    rate, momentum, forget = (x[..., None, None] for x in (rate, momentum, forget))
    slopes = memory.slope(begun, k, v)
    moved = [momentum * s - rate * g for s, g in zip(moved, slopes, strict=True)]
    return [(1 - forget) * m + s for m, s in zip(held, moved, strict=True)], moved


def answers(memory, q, k, v, rates):
    held, moved, found = memory.start, [np.zeros_like(x) for x in memory.start], []
    begun = held
    for t in range(T):
        if t % CHUNK == 0:
            begun = held
        held, moved = learn(memory, held, moved, begun, (k[:, t], v[:, t], *(x[:, t] for x in rates)))
        found.append(memory.read(held, q[:, t]))
    return np.stack(found, axis=1)


def softmax(x):
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def near(one, q, k, v):
    """Each token, head by head, of its window and the persistent tokens."""
    found = np.zeros((B, T, N, K))
    for b, t, n in np.ndindex(B, T, N):
        begin = max(0, t - WINDOW + 1)
        keys = np.concatenate([k[b, begin : t + 1, n], one.persistent_key[:, n]])
        values = np.concatenate([v[b, begin : t + 1, n], one.persistent_value[:, n]])
        found[b, t, n] = softmax(keys @ q[b, t, n] / np.sqrt(H)) @ values
    return found


def made(one):
    arrays = [silu(convolved(getattr(one, name), getattr(one, f"convolution_{name}"))) for name in "qkv"]
    return unit(arrays[0]), unit(arrays[1]), arrays[2]


def again(one, x):
    return [np.einsum("btnk,nkh->btnh", x, getattr(one, f"again_{name}")) for name in "qkv"]


def built(form, memory):
    near = "" if form == "mac" else f", window={WINDOW}"
    one = setting(f"titans(form={form!r}, memory={memory!r}, chunk={CHUNK}{near}, persistent=2)")
    for name in ("start_first", "start_second", "rate"):  # larger ones let a network run away
        if name in one.params:
            one.params[name] *= 0.5
    return one, (Linear if memory == "linear" else Network)(one)


@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_as_a_gate(memory):
    one, held = built("mag", memory)
    far = normed(answers(held, *made(one), rates(one))) * one.scale_far
    known = normed(near(one, one.q, one.k, one.v)) * one.scale_near * sigmoid(far)
    close(one.run(), known, 1e-4)


@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_as_a_layer(memory):
    one, held = built("mal", memory)
    close(one.run(), near(one, *again(one, answers(held, *made(one), rates(one)))), 1e-4)


@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_as_a_context(memory):
    one, memory = built("mac", memory)
    asked, all_rates = made(one)[0], rates(one)
    held, moved, known = memory.start, [np.zeros_like(x) for x in memory.start], np.zeros((B, T, N, K))
    for start in range(0, T, CHUNK):
        here = range(start, min(start + CHUNK, T))
        recalled = np.stack([memory.read(held, asked[:, t]) for t in here], axis=1)
        _, held_k, held_v = again(one, recalled)
        mixed = np.zeros((B, len(here), N, K))
        for b, i, n in np.ndindex(B, len(here), N):
            own = slice(start, start + i + 1)
            keys = np.concatenate([one.persistent_key[:, n], held_k[b, : i + 1, n], one.k[b, own, n]])
            values = np.concatenate([one.persistent_value[:, n], held_v[b, : i + 1, n], one.v[b, own, n]])
            mixed[b, i, n] = softmax(keys @ one.q[b, start + i, n] / np.sqrt(H)) @ values
        q, k, v = again(one, mixed)
        begun = held
        for i, t in enumerate(here):
            step = (unit(k)[:, i], v[:, i], *(x[:, t] for x in all_rates))
            held, moved = learn(memory, held, moved, begun, step)
            known[:, t] = mixed[:, i] * sigmoid(memory.read(held, unit(q)[:, i]))
    close(one.run(), known, 1e-4)


def test_what_is_kept():
    """Memory, momentum, the memory its chunk began with; values before convolutions; a window less its last token."""
    one = setting(f"titans(chunk={CHUNK}, window={WINDOW}, convolution=2)").operator
    near = (WINDOW - 1) * (N * (H + K) + 1)
    assert one.state_size(DIMS) == N * (3 * H * K + 2 * H + K) + near
    network = setting(f"titans(form='mac', memory='mlp', chunk={CHUNK}, convolution=2, expansion=3)").operator
    segment = CHUNK * (N * 2 * (H + K) + 1)  # own keys and values, and those of what the memory gave
    assert network.state_size(DIMS) == N * (3 * 3 * H * (H + K) + 2 * H + K) + segment


def test_a_window_is_no_argument_of_segments():
    with pytest.raises(ConfigError, match="window = 3 is not allowed; allowed: None with form = 'mac'"):
        spec.build("operators", "titans('mac', window=3)", "test")
