"""Routing and superlinear attention against loops over queries in numpy, and where they are dense softmax."""

import math

import jax
import numpy as np
import pytest
from toys import Reads

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Dims, Placed
from positionbias.spec import ConfigError
from positionbias.tokens import sequential

NONE, ROPE = (Placed(spec.build("positions", name, "test")) for name in ("none", "rope"))
N, H = 2, 4


def operator(text):
    return spec.build("operators", text, "test")


def masked(text):
    return spec.build("masks", text, "test")


def arrays(length, seed=0):
    return [normal(seed + i, (2, length, N, H)) for i in range(3)]


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def made(one, length, seed=3):
    """Parameters and what is made of a stream."""
    dims = Dims(width=6, heads=N, head_size=H, length=length)
    params = {n: normal(seed, m.shape) for n, m in one.parameters(dims).items()}
    x = normal(seed + 1, (2, length, 6))
    return params | jax.jit(one.projected)(x, x, params)


def mixed(one, given, tokens, mask, position=NONE, params=None):
    told = tokens, tokens, masked(mask), position
    return jax.jit(lambda given, params: one(*given, *told, params, Sites()))(given, params or {})


def pattern(one, given, tokens, mask, params=None):
    told = tokens, tokens, masked(mask), NONE

    def read(given, params):
        kept = {}
        one(*given, *told, params, Reads(lambda name, value: kept.setdefault(name, value)))
        return kept["pattern"]

    return np.asarray(jax.jit(read)(given, params or {}))


def softmax(scores, keys, length):
    row = np.zeros(length)
    if len(keys):
        row[keys] = np.exp(scores[keys])
    return row / max(row.sum(), 1e-30)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("top", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 2])
def test_regions_are_chosen_by_their_means(causal, top, padding):
    length, size = 14, 4  # the last region is cut short
    valid = np.arange(length) >= padding
    tokens = sequential(length, valid=valid)
    q, k, _ = (np.asarray(x, np.float64) for x in arrays(length))
    one = operator(f"routing(region={size}, top={top}, causal={causal})")
    found = pattern(one, arrays(length), tokens, "causal" if causal else "bidirectional")
    regions = [[i for i in range(start, min(start + size, length)) if valid[i]] for start in range(0, length, size)]
    for b in range(2):
        means = [[x[b, r].reshape(len(r), -1).mean(axis=0) for r in regions] for x in (q, k)]
        for i in range(length):
            own = i // size
            if causal:
                suits = {u: means[0][own - 1] @ means[1][u] for u in range(own)}
                chosen = [own, *sorted(suits, key=suits.get, reverse=True)[: top - 1]]
            else:
                suits = {u: means[0][own] @ means[1][u] for u in range(len(regions))}
                chosen = sorted(suits, key=suits.get, reverse=True)[:top]
            keys = [j for u in chosen for j in regions[u] if j <= i or not causal] if valid[i] else []
            for n in range(N):
                wanted = softmax(k[b, :, n] @ q[b, i, n] / np.sqrt(H), keys, length)
                np.testing.assert_allclose(found[b, n, i], wanted, atol=2e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_routing_to_all_regions_is_dense(causal):
    mask = "causal" if causal else "bidirectional"
    one, tokens = operator(f"routing(region=3, top=5, causal={causal})"), sequential(14)
    found = mixed(one, arrays(14), tokens, mask, ROPE)
    np.testing.assert_allclose(found, mixed(Softmax(), arrays(14), tokens, mask, ROPE), rtol=1e-5, atol=1e-6)


def test_choices_of_regions_have_no_gradient():
    """The gradient is that of softmax under the mask that was chosen."""
    one, tokens = operator("routing(region=2, top=2)"), sequential(8)
    chosen = pattern(one, arrays(8), tokens, "causal") > 0

    def by_choice(q, k, v):
        scores = np.sqrt(1 / H) * jax.numpy.einsum("BTNH,BSNH->BNTS", q, k)
        weights = jax.nn.softmax(jax.numpy.where(chosen, scores, -1e9), axis=-1)
        return jax.numpy.einsum("BNTS,BSNH->BTNH", weights, v)

    for one_, other in zip(
        jax.jit(jax.grad(lambda *x: (mixed(one, x, tokens, "causal") ** 2).sum(), argnums=(0, 1, 2)))(*arrays(8)),
        jax.jit(jax.grad(lambda *x: (by_choice(*x) ** 2).sum(), argnums=(0, 1, 2)))(*arrays(8)),
        strict=True,
    ):
        np.testing.assert_allclose(one_, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("inside", "top", "back", "front", "mask"),
    [(1, 2, 1.0, 0.5, "causal"), (2, 3, 2.0, 0.0, "causal"), (1, 1, 0.0, 0.0, "causal & ~dilated_window(40, 3)")],
)
def test_spans_around_the_best_anchors(inside, top, back, front, mask):
    length = 30
    one = operator(f"superlinear(inside={inside}, top={top}, back={back}, front={front})")
    params, tokens = made(one, length), sequential(length)
    found = pattern(one, arrays(length), tokens, mask, params)
    q, k, _ = (np.asarray(x, np.float64) for x in arrays(length))
    searched = np.asarray(params["searched"], np.float64).reshape(2, length, N, H)
    allowed, window = masked(mask).dense(tokens, tokens), (inside + 1) ** 2 - 1
    for b, n, i in np.ndindex(2, N, length):
        anchors = [i - j**2 + 1 for j in range(inside + 1, 100) if i - j**2 + 1 >= 0]
        anchors = [a for a in anchors if allowed[i, a]]
        scores = k[b, :, n] @ q[b, i, n] / np.sqrt(H)
        search = {a: k[b, a, n] @ searched[b, i, n] / np.sqrt(H) for a in anchors}
        best = sorted(search, key=search.get, reverse=True)[:top]
        near = [j for j in range(max(0, i - window + 1), i + 1) if allowed[i, j]]
        wanted = np.zeros(length) if best else softmax(scores, near, length)
        for a in best:
            low, high = a - math.ceil(back * math.sqrt(i + 1)), a + math.ceil(front * math.sqrt(i + 1))
            span = [j for j in range(max(0, low), min(high, i - window) + 1) if allowed[i, j]]
            share = np.exp(search[a]) / sum(np.exp(search[other]) for other in best)
            wanted += share * softmax(scores, span + near, length)
        np.testing.assert_allclose(found[b, n, i], wanted, atol=2e-6)


def test_a_window_over_everything_is_dense():
    one, tokens = operator("superlinear(inside=3)"), sequential(15)
    found = mixed(one, arrays(15), tokens, "causal", ROPE, made(one, 15))
    np.testing.assert_allclose(found, mixed(Softmax(), arrays(15), tokens, "causal", ROPE), rtol=1e-5, atol=1e-6)
    longer = operator("superlinear(inside=3, top=1, back=0)")
    found = mixed(longer, arrays(20), sequential(20), "causal", params=made(longer, 20))
    dense = np.asarray(mixed(Softmax(), arrays(20), sequential(20), "causal"))
    np.testing.assert_allclose(found[:, :15], dense[:, :15], rtol=1e-5, atol=1e-6)
    assert np.abs(found[:, 16:] - dense[:, 16:]).min(axis=(0, 2, 3)).max() > 1e-4


def test_the_search_is_trained_by_its_shares():
    one, tokens, length = operator("superlinear(inside=1, top=2)"), sequential(20), 20
    params, given = made(one, length), arrays(length)

    def loss(searched):
        return (mixed(one, given, tokens, "causal", params=params | {"searched": searched}) ** 2).sum()

    slope = np.abs(np.asarray(jax.jit(jax.grad(loss))(params["searched"]))).sum(axis=(0, 2))
    assert (slope[:8] == 0).all()  # the second anchor, 8 places back, is there from row 8 on
    assert (slope[8:] > 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("routing(region=0)", "region = 0 is not allowed"),
        ("routing(top=0)", "top = 0 is not allowed"),
        ("superlinear(inside=0)", "inside = 0 is not allowed"),
        ("superlinear(back=-1)", "back = -1.0 is not allowed"),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(ConfigError, match=message):
        spec.build("operators", text, "operator")


def test_routing_refuses_masks_that_hide_more_than_it_can_leave_out(tiny):
    with pytest.raises(ConfigError, match="allowed: a mask that contains what it mixes"):
        build(tiny({"model.operator": "routing(region=2)", "model.mask": "causal & sliding_window(2)"}))
