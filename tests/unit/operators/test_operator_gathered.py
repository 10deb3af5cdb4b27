"""Operators that compute less than all pairs, against their formulas over all: outputs and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Reads

from positionbias import spec
from positionbias.kernels.softmax_attention import ladder, xla_chunked, xla_spans
from positionbias.models.sites import Sites
from positionbias.operators import choosing
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential

B, T, N, H, D = 2, 45, 2, 4, 6
CASES = [
    ("combiner(span=8)", "causal"),
    ("combiner(span=8, pool='mean', causal=False)", "bidirectional"),
    ("combiner('logsparse')", "causal"),
    ("combiner('axial', span=4)", "causal"),
    ("combiner('axial', span=64, causal=False, scaled=False)", "bidirectional"),
    ("hyper_attention(block=4, samples=5, exact=7)", "causal"),
    ("hyper_attention(block=3, samples=0, exact=1, scaled=False)", "causal"),
    ("hyper_attention(causal=False, block=4, samples=5, exact=8)", "bidirectional"),
    ("reversed", "bidirectional"),
    ("reversed(selector=True, gate=True, scaled=False)", "bidirectional"),
    ("routing(region=4, top=3)", "causal"),
    ("routing(region=8, top=1)", "causal"),
    ("routing(region=7, top=2, causal=False, scaled=False)", "bidirectional"),
    ("superlinear(inside=1, top=2, back=1.0, front=0.5)", "causal"),
    ("superlinear(inside=2, top=3, scaled=False)", "causal & ~dilated_window(40, 3)"),
    ("superlinear(inside=2, top=9)", "causal & segments"),
    ("superlinear(inside=7)", "causal"),
    ("varied_window(width=4)", "bidirectional"),
    ("varied_window(width=7, scaled=False)", "bidirectional"),
]
NOTHING = Placed(spec.build("positions", "rope", "test"))


def padded():
    """The first three tokens of one example, and the last of the other, are padding."""
    valid = np.ones((B, T), bool)
    valid[0, :3], valid[1, -1] = False, False
    return sequential(T, valid=valid)


def value_and_gradients(text, mask, dtype, tokens, site):
    one, mask = spec.build("operators", text, "test"), spec.build("masks", mask, "test")
    keys = iter(jax.random.split(jax.random.key(0), 32))
    length = tokens.length
    dims = Dims(width=D, heads=N, head_size=H, length=length)
    params = {name: 0.3 * jax.random.normal(next(keys), m.shape) for name, m in one.parameters(dims).items()}
    x, aim = (jax.random.normal(next(keys), shape, dtype) for shape in ((B, length, D), (B, length, N, H)))
    q, k, v = (jax.random.normal(next(keys), (B, length, N, H), dtype) for _ in range(3))

    def loss(q, k, v, x, params):
        told = params | one.projected(x, x, params)
        found = one(q, k, v, tokens, tokens, mask, NOTHING, told, site)
        return jnp.sum((found * aim).astype(jnp.float32)), found

    made = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)
    return jax.jit(made)(q, k, v, x, params)


@pytest.mark.parametrize(("told", "dtype"), [("whole", jnp.float32), ("padded", jnp.float32), ("padded", jnp.bfloat16)])
@pytest.mark.parametrize(("text", "mask"), CASES)
def test_what_is_gathered_is_the_formula(text, mask, dtype, told, monkeypatch):
    monkeypatch.setattr(choosing, "LONG", 0)
    tokens = padded() if told == "padded" else sequential(T)
    found = value_and_gradients(text, mask, dtype, tokens, Sites())
    known = value_and_gradients(text, mask, dtype, tokens, Reads(lambda name, value: value))
    atol = 2e-5 if dtype == jnp.float32 else 4e-2
    close(found, known, atol)


def close(found, known, atol):
    """Outputs and gradients, within so much of the largest entry."""
    pairs = zip(*(jax.tree.leaves((one[0][1], one[1])) for one in (found, known)), strict=True)
    for one, other in (tuple(np.asarray(x, np.float32) for x in pair) for pair in pairs):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize(
    "text", ["based(features=4, window=9)", "titans(form='mag', window=20)", "chunk_hybrid(chunk=12)"]
)
def test_windows_in_chunks_are_those_over_all_pairs(text, monkeypatch):
    tokens, bands = sequential(1100), []

    def banded(*asked):
        bands.append(xla_spans.band(*asked))
        return bands[-1]

    monkeypatch.setattr(xla_chunked, "band", banded)
    found = value_and_gradients(text, "causal", jnp.float32, tokens, Sites())
    assert bands
    assert None not in bands
    monkeypatch.setattr(ladder, "LONG", 1101)
    close(found, value_and_gradients(text, "causal", jnp.float32, tokens, Sites()), 2e-5)
    assert len(bands) == 1


def test_all_pairs_are_computed_of_few_tokens_and_where_something_is_made_of_each():
    def asked(length, position, site):
        return choosing.over_all_pairs(length, Placed(spec.build("positions", position, "test")), site)

    assert asked(255, "rope", Sites())
    assert not asked(256, "rope", Sites())
    assert asked(256, "alibi", Sites())
    assert asked(256, "mirrored_rope", Sites())
    assert asked(256, "rope", Reads(lambda name, value: value))
