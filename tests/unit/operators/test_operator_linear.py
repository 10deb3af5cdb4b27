"""Operators by recurrences against what defines them, in numpy, one step or one pair after another."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators_oracle import (
    DIMS,
    H,
    N,
    T,
    close,
    convolved,
    heads,
    lower,
    mixed,
    normed,
    products,
    recurrence,
    setting,
    sigmoid,
    silu,
    softplus,
)

from positionbias import kernels
from positionbias.models.sites import Sites
from positionbias.operators.lightnet import LightNet
from positionbias.spec import ConfigError

FEATURES = {
    "elu": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "relu": lambda x: np.maximum(x, 0),
    "exp": np.exp,
}


def scores_of(feature, q, k):
    if feature == "taylor":
        s = products(q, k) / math.sqrt(H)
        return 1 + s + s**2 / 2
    if feature == "identity":
        return products(q, k) / math.sqrt(H)
    return products(FEATURES[feature](q.astype(np.float64)), FEATURES[feature](k.astype(np.float64)))


@pytest.mark.parametrize("text", ["linear_attention(feature='taylor')", "prefix_linear_attention"])
def test_blocks_of_rows_give_what_all_rows_do(text, monkeypatch):
    one = setting(text, "bidirectional", context=(np.arange(T) < 7).astype(np.int32), valid=np.arange(T) != 3)

    def run(rows):
        monkeypatch.setattr("positionbias.operators.linear_attention.ROWS", rows)

        def loss(arrays):
            params = one.params | one.operator.projected(arrays["x"], arrays["x"], one.params)
            read = (arrays[name] for name in "qkv")
            found = one.operator(*read, one.tokens, one.tokens, one.mask, one.position, params, Sites())
            return jnp.sum(jnp.sin(found)), found

        return jax.grad(loss, has_aux=True)({name: getattr(one, name) for name in "xqkv"})

    (known_slopes, known), (slopes, found) = run(T), run(2)
    close(np.asarray(found), np.asarray(known), 1e-6)
    for name, slope in slopes.items():
        close(np.asarray(slope), np.asarray(known_slopes[name]), 1e-5)


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
@pytest.mark.parametrize("feature", ["elu", "relu", "exp", "taylor", "identity"])
def test_linear_attention_is_a_share_of_products_of_features(feature, mask):
    one = setting(f"linear_attention(feature={feature!r})", mask, valid=np.arange(T) != 3)
    scores = scores_of(feature, one.q, one.k)
    scores[..., 3] = 0
    scores = lower(scores) if mask == "causal" else scores
    total = scores.sum(axis=-1, keepdims=True)
    weights = (
        scores if feature == "identity" else np.divide(scores, total, out=np.zeros(scores.shape), where=total != 0)
    )
    known = mixed(weights, one.v)
    known[:, 3] = 0
    close(one.run(), known)


@pytest.mark.parametrize("low", [-20.0, -60.0])
def test_elu_keeps_apart_what_is_far_below_zero(low):
    one = setting("linear_attention")
    k = (one.k + low).astype(np.float32)
    weights = lower(scores_of("elu", one.q, k.astype(np.float64)))
    close(one.run(k=k), mixed(weights / weights.sum(axis=-1, keepdims=True), one.v))


def test_linear_attention_without_a_divisor():
    one = setting("linear_attention(normalise=False)")
    close(one.run(), mixed(lower(scores_of("elu", one.q, one.k)), one.v))


@pytest.mark.parametrize("gated", [True, False])
def test_retention_forgets_at_each_heads_pace(gated):
    one = setting(f"retention(gated={gated})")
    away = np.arange(T)[:, None] - np.arange(T)
    pace = np.array([31 / 32, 63 / 64])[:, None, None] ** np.maximum(away, 0)
    known = normed(mixed(lower(products(one.q, one.k) / 2 * pace), one.v))
    close(one.run(), known * heads(silu(one.x @ one.gate)) if gated else known)


def test_gated_linear_attention():
    one = setting("gated_linear_attention(rank=3, slowness=4.0)")
    made = one.x @ one.decay_in @ one.decay_out + one.decay_offset
    known = recurrence(one.q / 2, one.k, one.v, keys=heads(sigmoid(made)) ** 0.25)
    close(one.run(), normed(known) * heads(silu(one.x @ one.gate)))


def mamba_steps(one):
    started = np.array([0.001, 0.1])
    size = softplus(one.x @ one.step + one.step_offset + started + np.log(-np.expm1(-started)))
    return size, np.exp(-size * np.array([1.0, 16.0]) * np.exp(one.log_rate))


def test_mamba2():
    one = setting("mamba2(convolution=3)")
    size, decay = mamba_steps(one)
    q, k, v = (silu(convolved(getattr(one, name), getattr(one, f"convolution_{name}"))) for name in "qkv")
    found = recurrence(q, k * size[..., None], v, keys=np.broadcast_to(decay[..., None], k.shape))
    found = found + one.skip[:, None] * v
    close(one.run(), normed(found * heads(silu(one.x @ one.gate))))


def matrix(one, decay=1.0):
    away = np.arange(T)[:, None] - np.arange(T)
    return lower(products(one.q, one.k) / 2 * decay ** np.maximum(away, 0))


def test_higher_orders_are_products_of_masked_matrices():
    """A = L o (Q K'): (A A' o L) V, A A V and ((A A') o L) A V."""
    one = setting("hla2(norm='none')")
    a, v = matrix(one), one.v
    second = lower(np.einsum("bnij,bnkj->bnik", a, a))
    close(one.run(), mixed(second, v))
    close(setting("ahla(norm='none')").run(), mixed(a @ a, v))
    close(setting("hla3(norm='none')").run(), mixed(second @ a, v))


def test_higher_orders_over_all_keys_have_no_mask():
    one = setting("hla2(norm='none')", "bidirectional")
    a = products(one.q, one.k) / 2
    close(one.run(), mixed(np.einsum("bnij,bnkj->bnik", a, a), one.v))
    close(setting("ahla(norm='none')", "bidirectional").run(), mixed(a @ a, one.v))


def test_higher_orders_divide_by_their_weights_or_take_the_root_mean_square():
    one = setting("hla2(norm='ratio')")
    a = matrix(one)
    second = lower(np.einsum("bnij,bnkj->bnik", a, a))
    close(one.run(), mixed(second / second.sum(axis=-1, keepdims=True), one.v), 1e-3)
    close(setting("hla2").run(), normed(mixed(second, one.v)))


def test_a_decay_of_higher_orders_is_that_of_each_recurrence():
    one = setting("ahla(norm='none', decay=0.8)")
    a = matrix(one, 0.8)
    close(one.run(), mixed(a @ a, one.v))
    raw, i = products(one.q, one.k) / 2, np.arange(T)
    first, last = i[:, None, None], i[None, None, :]  # triples l <= j <= i, of which l is the first
    among = np.where((last <= i[None, :, None]) & (i[None, :, None] <= first), 0.8 ** np.maximum(first - last, 0), 0)
    second = np.einsum("bnil,bnjl,ijl->bnij", raw, raw, among)
    close(setting("hla2(norm='none', decay=0.8)").run(), mixed(second, one.v))
    close(setting("hla3(norm='none', decay=0.8)").run(), mixed(second @ a, one.v))


def opened_lightnet(one):
    return heads(sigmoid(one.x @ one.gate_in @ one.gate_out))


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_lightnet_is_a_softmax_over_time_for_each_channel(mask):
    one = setting("lightnet(rank=2)", mask, valid=np.arange(T) != 2)
    weights = np.exp(one.k.astype(np.float64))
    weights[:, 2] = 0
    held = np.einsum("bsnh,bsnk->bsnhk", weights, one.v)
    above, below = held.cumsum(axis=1), weights.cumsum(axis=1)
    if mask == "bidirectional":
        above, below = (np.broadcast_to(x[:, -1:], x.shape) for x in (above, below))
    known = normed(np.einsum("btnh,btnhk->btnk", silu(one.q), above / below[..., None])) * opened_lightnet(one)
    known[:, 2] = 0
    close(one.run(), known)


def test_lightnet_with_constant_keys_is_a_running_mean():
    one = setting("lightnet(rank=2)")
    mean = one.v.cumsum(axis=1) / np.arange(1, T + 1)[:, None, None]
    known = normed(silu(one.q).sum(axis=-1, keepdims=True) * mean) * opened_lightnet(one)
    close(one.run(k=np.full(one.k.shape, 0.7, np.float32)), known)


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_lightnet_turned_by_two_fields(mask):
    """The weight of key j for query i, a channel, times the cosine of the difference of their angles."""
    frame = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3], np.int32)
    one = setting("lightnet(rank=2, lrpe=('position', 'frame'))", mask, frame=frame)
    places = np.stack([np.arange(T), np.arange(T), frame, frame], axis=-1)
    angles = places * 10000.0 ** -np.array([0, 0.5, 0, 0.5])
    turn = np.cos(angles[:, None] - angles)  # [T, S, H]
    weights = np.exp(one.k.astype(np.float64))
    seen = np.tril(np.ones((T, T))) if mask == "causal" else np.ones((T, T))
    below = np.einsum("ts,bsnh->btnh", seen, weights)
    share = np.einsum("btnh,bsnh,tsh,ts->bnts", silu(one.q) / below, weights, turn, seen)
    close(one.run(), normed(mixed(share, one.v)) * opened_lightnet(one))


def test_lightnet_is_turned_by_every_field_where_channels_do_not_divide():
    fields = ("position", "frame", "scale")  # H = 4
    one = setting(f"lightnet(rank=2, lrpe={fields})")
    told = one.tokens, *(one.tokens._replace(**{name: np.arange(T, dtype=np.int32) ** 2}) for name in fields)
    still, *turned = (one.run(tokens=tokens) for tokens in told)
    assert all(np.abs(found - still).max() > 1e-3 for found in turned)


def test_lightnet_takes_no_more_fields_than_channels():
    with pytest.raises(ConfigError, match="at most as many names as a head has channels, 4"):
        setting("lightnet(lrpe=('position', 'frame', 'scale', 'role', 'segment'))")


def test_lightnet_names_the_fields_it_reads():
    assert LightNet(lrpe=("position", "frame")).reads_tokens == {"position", "frame"}
    assert setting("lightnet(lrpe=('frame',))").operator.state_size(DIMS) == N * H * (2 * 3 + 1)


def softmax(x):
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def test_lawcat():
    one = setting("lawcat(features=5, convolution=3, rank=2, slowness=4.0)")
    q, k = (
        softmax(
            np.einsum("btnh,nhf->btnf", convolved(getattr(one, name), getattr(one, f"convolution_{name}")), one.map)
        )
        for name in "qk"
    )
    decay = heads(sigmoid(one.x @ one.decay_in @ one.decay_out + one.decay_offset)) ** 0.25
    ones = np.ones((*one.v.shape[:3], 1))
    close(one.run(), recurrence(q, k, one.v, keys=decay) / recurrence(q, k, ones, keys=decay))


def test_gated_slot_reads_slots_by_softmax():
    one = setting("gated_slot(slots=5, slowness=2.0)")
    decay = heads(sigmoid(one.x @ one.decay)) ** 0.5
    q, k, v = silu(one.q), silu(one.k), silu(one.v)
    slots = {"k": np.zeros((2, N, 5, H)), "v": np.zeros((2, N, 5, 3))}
    found = []
    for t in range(T):
        a = decay[:, t, :, :, None]
        for name, x in (("k", k), ("v", v)):
            slots[name] = a * slots[name] + (1 - a) * x[:, t, :, None]
        weights = softmax(np.einsum("bnh,bnsh->bns", q[:, t], slots["k"]) / 2)
        found.append(np.einsum("bns,bnsk->bnk", weights, slots["v"]))
    close(one.run(), normed(np.stack(found, axis=1)))


def test_bounded_memory_is_two_recurrences_whose_gates_are_quotients_of_sums():
    """ABC: each slot holds the mean of keys and of values, weighted by exponentials of how much each token writes."""
    one, slots = setting("linear_attention"), 5
    written = np.random.default_rng(1).normal(size=(2, T, N, slots)).astype(np.float32)
    weights, known = np.exp(written.astype(np.float64)), []
    for t in range(T):
        share = weights[:, : t + 1] / weights[:, : t + 1].sum(axis=1, keepdims=True)
        keys, values = (np.einsum("bsnr,bsnk->bnrk", share, x[:, : t + 1]) for x in (one.k, one.v))
        known.append(np.einsum("bnr,bnrk->bnk", softmax(np.einsum("bnh,bnrh->bnr", one.q[:, t], keys)), values))
    total = np.logaddexp.accumulate(written, axis=1)
    decay = np.concatenate([total[:, :1], total[:, :-1]], axis=1) - total
    now = np.exp(written - total)
    scores, _ = kernels.linear_attention(one.q, one.k, now, value_log_decay=decay)
    found, _ = kernels.linear_attention(softmax(np.asarray(scores)), now, one.v, log_decay=decay)
    close(found, np.stack(known, axis=1))


@pytest.mark.parametrize("name", ["delta", "gated_delta"])
def test_the_delta_rule_corrects_what_a_key_holds(name):
    one = setting(f"{name}(convolution=3, most=2.0)")
    q, k, v = (silu(convolved(getattr(one, x), getattr(one, f"convolution_{x}"))) for x in "qkv")
    q, k = (x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-6) for x in (q, k))
    strength = 2 * sigmoid(one.x @ one.strength)
    decay = mamba_steps(one)[1] if name == "gated_delta" else np.ones(strength.shape)
    state, found = np.zeros((2, N, H, 3)), []
    for t in range(T):
        state = decay[:, t, :, None, None] * state
        wrong = v[:, t] - np.einsum("bnh,bnhk->bnk", k[:, t], state)
        state = state + strength[:, t, :, None, None] * np.einsum("bnh,bnk->bnhk", k[:, t], wrong)
        found.append(np.einsum("bnh,bnhk->bnk", q[:, t] / 2, state))
    known = normed(np.stack(found, axis=1))
    close(one.run(), known * heads(silu(one.x @ one.gate)) if name == "gated_delta" else known, 1e-4)
