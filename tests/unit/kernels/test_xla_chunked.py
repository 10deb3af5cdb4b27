"""Chunks of rows are computed against the keys that they see: the same as all rows against all keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import costs, tokens
from positionbias.kernels import PerHead, attention
from positionbias.kernels.softmax_attention import xla_chunked, xla_spans
from positionbias.kernels.softmax_attention.call import posed
from positionbias.kernels.softmax_attention.problem import STATS, Stats
from positionbias.masks.groups import Segments
from positionbias.masks.order import Causal, Prefix, SlidingWindow

LENGTH, TILES = 150, (16, 16)
DOCUMENTS = tokens.sequential(LENGTH, segment=np.arange(LENGTH) // 40)
PADDED = tokens.sequential(LENGTH, valid=np.arange(LENGTH) >= 100)
TWO = tokens.sequential(LENGTH)._replace(segment=np.stack([np.arange(LENGTH) // 40, np.arange(LENGTH) // 110]))
CASES = {
    "causal": (Causal(), None, 4),
    "window": (Causal() & SlidingWindow(20), None, 1),
    "prefix": (Prefix(30), None, 4),
    "documents": (Segments(), DOCUMENTS, 4),
    "documents of each": (Segments(), TWO, 3),
    "rows that see nothing": (Causal(), PADDED, 3),
    "function": (lambda b, h, q, k: k <= q, None, 4),
    "function of the example": (lambda b, h, q, k: k <= q + b, None, 4),
    "none": (None, None, 1),
}


BANDS = {
    "window": (Causal() & SlidingWindow(20), None),
    "on both sides": (SlidingWindow(3), None),
    "documents": (Segments() & SlidingWindow(9), DOCUMENTS),
    "rows that see nothing": (Causal() & SlidingWindow(20), PADDED),
    "function": (lambda b, h, q, k: (k <= q) & (k > q - 9 - b), None),
}


def value_and_gradients(impl, mask, told, asked=STATS):
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(2, LENGTH, n, 8)), jnp.float32) for n in (4, 2, 2))
    slopes = jnp.asarray(draw.normal(size=4), jnp.float32)

    def loss(q, k, v, slopes):
        o, stats = attention(
            q,
            k,
            v,
            mask=mask,
            tokens=None if told is None else (told, told),
            score=lambda s, b, h, q, k, slope: s - slope * 0.1 * abs(q - k),
            aux={"slope": PerHead(slopes)},
            key_bias=jnp.cos(k[..., 0]).swapaxes(1, 2),
            stats=asked,
            dropout=(0.3, 7),
            impl=impl,
            block_sizes=TILES,
        )
        found = (o, *(jnp.where(x > -1e29, x, 0.0) for x in stats if x is not None))
        weigh = np.random.default_rng(1)
        return sum(jnp.sum(x * weigh.normal(size=x.shape)) for x in found), (o, stats)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, slopes)


@pytest.mark.parametrize("case", ["window", "documents of each", "rows that see nothing"])
def test_chunks_against_the_keys_they_see_are_exact(case, monkeypatch):
    mask, told, _ = CASES[case]
    monkeypatch.setattr(xla_chunked, "CHUNK", 16)
    monkeypatch.setattr(xla_chunked, "FEW", 0)
    found, wanted = (value_and_gradients(impl, mask, told) for impl in ("xla_chunked", "xla_dense"))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)
    assert found[0][1][1]._fields == Stats._fields


@pytest.mark.parametrize("stats", [[], ["lse"]], ids=["outputs alone", "log-sum-exps"])
@pytest.mark.parametrize("case", [*CASES, *BANDS])
def test_gradients_whose_offset_the_outputs_tell_are_exact(case, stats, monkeypatch):
    mask, told = (CASES | BANDS)[case][:2]
    monkeypatch.setattr(xla_chunked, "CHUNK", 16)
    monkeypatch.setattr(xla_chunked, "FEW", 0)
    found, wanted = (value_and_gradients(impl, mask, told, stats) for impl in ("xla_chunked", "xla_dense"))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("case", BANDS)
def test_a_band_is_exact(case, monkeypatch):
    mask, told = BANDS[case]
    monkeypatch.setattr(xla_chunked, "CHUNK", 16)
    monkeypatch.setattr(xla_chunked, "FEW", 0)
    bands, stats = [], [name for name in STATS if name != "block_mass"]

    def narrow(*asked):
        bands.append(xla_spans.band(*asked[:2], LENGTH * LENGTH))  # of so few rows spans would leave out as much
        return bands[-1]

    monkeypatch.setattr(xla_chunked, "band", narrow)
    found, wanted = (value_and_gradients(impl, mask, told, stats) for impl in ("xla_chunked", "xla_dense"))
    assert bands[0].near < LENGTH / 2
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_a_band_begins_where_each_chunk_begins_to_see():
    q = jnp.zeros((1, 70, 1, 8))
    asked = posed(q, q, q, mask=Causal() & SlidingWindow(3), block_sizes=(16, 8))
    found = xla_spans.band(asked, 16, 70 * 70)
    assert (found.firsts.tolist(), found.near) == ([0, 8, 24, 40, 46], 24)
    assert xla_spans.band(asked, 16, 4 * 24 * 70 // 3) is not None
    assert xla_spans.band(asked, 16, 4 * 24 * 70 // 3 - 1) is None
    table = jnp.asarray(np.tri(70, dtype=bool) & ~np.tri(70, k=-3, dtype=bool))
    paired = posed(q, q, q, mask=lambda b, h, q, k: table[q, k], block_sizes=(16, 8))
    assert xla_spans.band(paired, 16, 70 * 70) is None


def test_products_of_a_window_grow_as_the_length():
    def products(length):
        q = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        mask = Causal() & SlidingWindow(16)
        return costs.products(jax.make_jaxpr(lambda q: attention(q, q, q, mask=mask, impl="xla_chunked"))(q))

    assert products(16384) == 4 * products(4096)


def _loops(case, monkeypatch):
    mask, told, _ = CASES[case]
    monkeypatch.setattr(xla_chunked, "CHUNK", 16)
    monkeypatch.setattr(xla_chunked, "FEW", 0)
    q = jnp.zeros((2, LENGTH, 1, 8))
    side = None if told is None else (told, told)

    def call(q):
        return attention(q, q, q, mask=mask, tokens=side, impl="xla_chunked", block_sizes=TILES)

    return str(jax.make_jaxpr(call)(q)).count("scan[")


@pytest.mark.parametrize("case", CASES)
def test_spans_that_see_the_same_keys_are_one(case, monkeypatch):
    assert _loops(case, monkeypatch) == CASES[case][2]


def test_few_scores_are_computed_at_once(monkeypatch):
    """Where no keys are left out: 4 bytes for each of 2 x 150 x 150."""
    monkeypatch.setattr(xla_chunked, "CHUNK", 16)
    q = jnp.zeros((2, LENGTH, 1, 8))

    def loops(mask):
        call = jax.make_jaxpr(lambda q: attention(q, q, q, mask=mask, impl="xla_chunked", block_sizes=TILES))
        return str(call(q)).count("scan[")

    for few, none, causal in ((180_001, 0, 4), (180_000, 1, 4)):
        monkeypatch.setattr(xla_chunked, "FEW", few)
        assert (loops(None), loops(Causal())) == (none, causal)


def test_a_mask_that_is_not_known_before_has_one_span(monkeypatch):
    monkeypatch.setattr(xla_chunked, "CHUNK", 16)
    monkeypatch.setattr(xla_chunked, "FEW", 0)
    q = jnp.zeros((2, LENGTH, 1, 8))

    def call(q, length):
        return attention(q, q, q, mask=lambda b, h, q, k: k < length, impl="xla_chunked", block_sizes=TILES)

    assert str(jax.make_jaxpr(call)(q, 7)).count("scan[") == 1
