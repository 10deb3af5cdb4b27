"""The linear family across two sequences, against its formulas in numpy: sums over the keys stored up to each query."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators_oracle import DIMS, B, D, H, K, N, close, heads, mixed, normed, products, sigmoid, silu
from test_operator_training import check_crossing, gradients

from positionbias import spec
from positionbias.config.build import build
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites
from positionbias.operators.base import Pattern
from positionbias.positions.base import Placed
from positionbias.tokens import sequential

S, T = 7, 5
KEYS = sequential(S, index=np.array([0, 2, 3, 5, 8, 9, 11]), valid=np.arange(S) != 2)
QUERIES = sequential(T, index=np.array([8, 1, 3, 6, 20]), valid=np.arange(T) != 3)  # in no order of storage
SEEN = {
    "causal": np.array(
        [[1, 1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0] * 7, [1, 1, 0, 1, 1, 1, 1]]
    ),
    "bidirectional": np.array([[1, 1, 0, 1, 1, 1, 1]] * 3 + [[0] * 7] + [[1, 1, 0, 1, 1, 1, 1]]),
}


class Across:
    """An operator on queries and keys of two sequences."""

    def __init__(self, text, mask, keys=KEYS, queries=QUERIES):
        self.operator, self.mask = spec.build("operators", text, "operator"), spec.build("masks", mask, "mask")
        self.told, draw = (queries, keys), np.random.default_rng(0)
        self.x, self.stream = (draw.normal(size=(B, size, D)).astype(np.float32) for size in (T, S))
        sizes = {"q": (T, H), "k": (S, H), "v": (S, K)}
        self.arrays = {n: draw.normal(size=(B, m, N, size)).astype(np.float32) for n, (m, size) in sizes.items()}
        declared = self.operator.parameters(DIMS).items()
        self.params = {name: draw.normal(size=matrix.shape).astype(np.float32) for name, matrix in declared}

    def __getattr__(self, name):
        return np.asarray(self.params[name] if name in self.params else self.arrays[name], np.float64)

    def run(self, told=None):
        params = {name: jnp.asarray(x) for name, x in self.params.items()}
        params |= self.operator.projected(jnp.asarray(self.x), jnp.asarray(self.stream), params)
        given = (jnp.asarray(self.arrays[name]) for name in "qkv")
        place = Placed(spec.build("positions", "none", "position"))
        return self.operator(*given, *(told or self.told), self.mask, place, params, Sites())


def taylor(q, k):
    s = products(q, k) / math.sqrt(q.shape[-1])
    return 1 + s + s**2 / 2


def shares(scores):
    total = scores.sum(axis=-1, keepdims=True)
    return np.divide(scores, total, out=np.zeros(scores.shape), where=total != 0)


@pytest.mark.parametrize("mask", SEEN)
@pytest.mark.parametrize("feature", ["elu", "taylor", "identity"])
def test_linear_attention(feature, mask):
    one = Across(f"linear_attention(feature={feature!r})", mask)
    if feature == "taylor":
        scores = taylor(one.q, one.k)
    elif feature == "identity":
        scores = products(one.q, one.k) / 2
    else:
        scores = products(*(np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (one.q, one.k)))
    scores = scores * SEEN[mask]
    close(one.run(), mixed(scores if feature == "identity" else shares(scores), one.v))


@pytest.mark.parametrize("mask", SEEN)
def test_lightnet_is_a_softmax_over_the_keys_that_came(mask):
    one = Across("lightnet(rank=2)", mask)
    weights = np.exp(one.k)[:, None] * SEEN[mask][:, :, None, None]  # [B, T, S, N, H]
    total = weights.sum(axis=2, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros(weights.shape), where=total != 0)
    known = normed(np.einsum("btnh,btsnh,bsnk->btnk", silu(one.q), weights, one.v))
    close(one.run(), known * heads(sigmoid(one.x @ one.gate_in @ one.gate_out)))


def test_lightnet_turned_by_positions():
    """Each side by its own."""
    one = Across("lightnet(rank=2, lrpe=('position',))", "causal")
    angles = [tokens.position[:, None] * 10000.0 ** -(np.arange(H) / H) for tokens in one.told]
    weights = np.exp(one.k)[:, None] * SEEN["causal"][:, :, None, None]
    total = weights.sum(axis=2, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros(weights.shape), where=total != 0)
    turn = np.cos(angles[0][:, None] - angles[1])
    known = normed(np.einsum("btnh,btsnh,tsh,bsnk->btnk", silu(one.q), weights, turn, one.v))
    close(one.run(), known * heads(sigmoid(one.x @ one.gate_in @ one.gate_out)))


@pytest.mark.parametrize("mask", SEEN)
def test_based_without_window_and_convolution(mask):
    one = Across("based(features=5, window=0, convolution=0)", mask)
    short = [np.einsum("btnh,nhf->btnf", x, m) for x, m in ((one.q, one.map_q), (one.k, one.map_k))]
    close(one.run(), mixed(shares(taylor(*short) * SEEN[mask]), one.v))


def test_prefix_linear_attention_reads_the_context_of_the_other_sequence_whole():
    one = Across("prefix_linear_attention", "bidirectional", KEYS._replace(context=(np.arange(S) < 4).astype(np.int32)))
    theirs = heads(one.stream @ one.context_key), heads(one.stream @ one.context_value)
    own = taylor(one.q, one.k) * SEEN["causal"]
    other = taylor(one.q, theirs[0]) * SEEN["bidirectional"] * (np.arange(S) < 4)
    total = (own + other).sum(axis=-1, keepdims=True)
    total[total == 0] = 1
    close(one.run(), mixed(own / total, one.v) + mixed(other / total, theirs[1]))


@pytest.mark.parametrize(
    "text", ["linear_attention", "lightnet", "based(window=0, convolution=0)", "prefix_linear_attention"]
)
def test_tokens_of_every_sequence_that_are_traced(text):
    """Each with places of its own, known when it runs."""
    one = Across(text, "causal")
    moved = [t._replace(index=np.stack([t.index, t.index[::-1]])) for t in one.told]
    found = jax.jit(lambda *told: one.run(told))(*moved)
    for row in range(B):
        alone = one.run([t._replace(index=t.index[row]) for t in moved])
        np.testing.assert_allclose(found[row], alone[row], rtol=1e-5, atol=1e-5)


SPLIT = {"task": "reversal_in_context(pairs=3, names=6)", "model.position": "none"}


@pytest.mark.parametrize("operator", ["linear_attention", "lightnet", "prefix_linear_attention"])
@pytest.mark.parametrize("cross", ["bidirectional", "causal"])
def test_an_encoder_and_a_decoder_are_built_of_it(tiny, operator, cross):
    architecture = f"encoder_decoder(encoder_mask=bidirectional, cross_mask={cross})"
    experiment = build(tiny(SPLIT | {"model.operator": operator, "model.architecture": architecture}))
    condition = experiment.task.conditions()[0]
    reach, context = experiment.reach(condition), experiment.task.context_length(condition)
    assert reach[context:, :context].all()


def test_keys_of_another_sequence_make_no_segments(tiny):
    """Of as many keys as queries, each may see one: no state is cleared for that, and such a mask is refused."""
    keys, queries = sequential(4), sequential(4, index=np.arange(4, 8), position=np.arange(4, 8))
    operator, mask = spec.build("operators", "linear_attention", "o"), spec.build("masks", "aligned_cross", "m")
    allowed = mask.dense(queries, keys)
    np.testing.assert_array_equal(allowed, np.eye(4))
    assert operator.visible(queries, keys, allowed).all()
    architecture = "encoder_decoder(encoder_mask=causal, cross_mask=sliding_window(2))"
    with pytest.raises(
        ConfigError, match=r"^model\.operator: linear_attention.* in cross attention of decoder layer 0"
    ):
        build(tiny(SPLIT | {"model.operator": "linear_attention", "model.architecture": architecture}))


def test_what_has_no_such_form_says_why(tiny):
    wanted = {"model.operator": "ahla", "model.architecture": "encoder_decoder"}
    told = (
        r"^model\.operator: ahla.* does not work as cross attention, which cross attention of decoder layer 0 needs, as"
        r" a query and a key of the same token are multiplied; allowed: model\.architecture = decoder_only, or an"
        r" operator that does, such as softmax\.$"
    )
    with pytest.raises(ConfigError, match=told):
        build(tiny(SPLIT | wanted))
    pattern: Pattern = "causal_cross"
    assert spec.build("operators", "fourier", "o").lacking(pattern).startswith("it reads one stream")


@pytest.mark.parametrize(
    "operator", ["linear_attention", "lightnet", "prefix_linear_attention", "based(window=0, convolution=0)"]
)
@pytest.mark.parametrize("cross", ["bidirectional", "causal"])
def test_it_learns_across_sequences(tiny, operator, cross):
    """Every parameter of cross attention matters to the loss."""
    architecture = f"encoder_decoder(encoder_mask=bidirectional, cross_mask={cross})"
    wanted = {"model.operator": operator, "model.architecture": architecture, "model.layers": 1}
    check_crossing(tiny(SPLIT | wanted))


def test_the_other_sequence_may_be_wider(tiny):
    """An encoder of two layers whose stream is concatenated gives more features than the decoder's begins with."""
    wanted = {"model.operator": "prefix_linear_attention", "model.architecture": "encoder_decoder", "model.layers": 2}
    found, slopes = gradients(tiny(SPLIT | wanted | {"model.residual": "concatenate"}))
    assert np.isfinite(found)
    own = [slope for path, slope in slopes.items() if "/cross/own/" in path]
    assert len(own) == 4
    assert all(np.abs(slope).max() > 0 for slope in own)
