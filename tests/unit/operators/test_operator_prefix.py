"""Prefix linear attention and Based: sums of two kinds of attention."""

import math

import numpy as np
import pytest
from operators_oracle import DIMS, H, K, N, T, close, convolved, heads, lower, mixed, products, recurrence, setting


def taylor(q, k):
    s = products(q, k) / math.sqrt(q.shape[-1])
    return 1 + s + s**2 / 2


@pytest.mark.parametrize("context", [0, 4, T])
def test_the_context_is_read_by_every_token_through_keys_of_its_own(context):
    one = setting("prefix_linear_attention", context=(np.arange(T) < context).astype(np.int32), valid=np.arange(T) != 1)
    theirs = heads(one.x @ one.context_key), heads(one.x @ one.context_value)
    own, other = lower(taylor(one.q, one.k)), taylor(one.q, theirs[0])
    other[..., context:] = 0
    own[..., 1] = other[..., 1] = 0
    total = own.sum(axis=-1) + other.sum(axis=-1)
    known = (mixed(own, one.v) + mixed(other, theirs[1])) / total.swapaxes(1, 2)[..., None]
    known[:, 1] = 0
    close(one.run(), known)


def test_without_a_context_it_is_linear_attention():
    close(setting("prefix_linear_attention").run(), setting("linear_attention(feature='taylor')").run(), 1e-6)


def test_without_a_context_it_is_based_without_window_and_convolution():
    based = setting(f"based(features={H}, window=0, convolution=0)")
    based.params.update({f"map_{name}": np.broadcast_to(np.eye(H, dtype=np.float32), (N, H, H)) for name in "qk"})
    close(setting("prefix_linear_attention").run(), based.run(), 1e-6)


def test_the_context_is_a_state_to_begin_with():
    one = setting("prefix_linear_attention(feature='identity')", context=(np.arange(T) < 4).astype(np.int32))
    theirs = heads(one.x @ one.context_key)[:, :4], heads(one.x @ one.context_value)[:, :4]
    begun = np.einsum("bsnh,bsnk->bnhk", *theirs)
    close(one.run(), recurrence(one.q / 2, one.k, one.v, state=begun))


def test_a_feature_that_is_not_divided():
    one = setting("prefix_linear_attention(feature='identity')", context=np.ones(T, np.int32))
    theirs = heads(one.x @ one.context_key), heads(one.x @ one.context_value)
    own, other = lower(products(one.q, one.k)) / 2, products(one.q, theirs[0]) / 2
    close(one.run(), mixed(own, one.v) + mixed(other, theirs[1]))


def test_a_token_of_the_context_sees_the_rest_of_it():
    one = setting("prefix_linear_attention", context=(np.arange(T) < 3).astype(np.int32))
    visible = one.operator.visible(one.tokens, one.tokens, np.ones((T, T), bool))
    np.testing.assert_array_equal(visible, np.tril(np.ones((T, T), bool)) | (np.arange(T) < 3))


def softmax(scores):
    raised = np.where(np.isfinite(scores), np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    return raised / raised.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("window", "convolution"), [(0, 0), (3, 0), (0, 2), (3, 2)])
def test_based_adds_exact_attention_in_a_window(window, convolution):
    one = setting(f"based(features=5, window={window}, convolution={convolution})")
    q, k, v = (np.asarray(getattr(one, name), np.float64) for name in "qkv")
    if convolution:
        q, k, v = (convolved(x, getattr(one, f"convolution_{name}")) for name, x in (("q", q), ("k", k), ("v", v)))
    short = [np.einsum("btnh,nhf->btnf", x, m) for x, m in ((q, one.map_q), (k, one.map_k))]
    far = lower(taylor(*short))
    known = mixed(far / far.sum(axis=-1, keepdims=True), v)
    if window:
        away = np.arange(T)[:, None] - np.arange(T)
        near = np.where((away >= 0) & (away < window), products(q, k) / math.sqrt(H), -np.inf)
        known = known + mixed(softmax(near), v)
    close(one.run(), known)


def test_based_counts_what_it_keeps():
    one = setting("based(features=5, window=3, convolution=2)").operator
    window = 2 * (N * (H + K) + 1)  # of the two tokens before the next, and whether they are there
    assert one.state_size(DIMS) == N * ((1 + 5 + 15) * (K + 1) + 2 * H + K) + window
