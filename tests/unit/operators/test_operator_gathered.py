"""Operators that compute less than all pairs, against their formulas over all: outputs and all gradients."""

import functools

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
    ("superlinear(inside=1, back=7.0, front=3.0)", "causal"),  # spans longer than the sequence
    ("varied_window(width=4)", "bidirectional"),
    ("varied_window(width=7, scaled=False)", "bidirectional"),
]
NOTHING = Placed(spec.build("positions", "rope", "test"))


def padded():
    """The first three tokens of one example, and the last of the other, are padding."""
    valid = np.ones((B, T), bool)
    valid[0, :3], valid[1, -1] = False, False
    return sequential(T, valid=valid)


def built(text, mask, length):
    """The operator, the mask and parameters."""
    one, mask = spec.build("operators", text, "test"), spec.build("masks", mask, "test")
    declared = one.parameters(Dims(width=D, heads=N, head_size=H, length=length))
    return one, mask, {name: 0.3 * normal(i, m.shape) for i, (name, m) in enumerate(declared.items())}


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sloped(text, mask, tokens, site):
    """A program of arrays, and of tokens' padding: the loss and what is mixed, and all gradients."""
    one, mask, params = built(text, mask, tokens.length)

    def loss(params, x, q, k, v, aim, valid):
        told, own = params | one.projected(x, x, params), tokens if valid is None else tokens._replace(valid=valid)
        found = one(q, k, v, own, own, mask, NOTHING, told, site)
        return jnp.sum((found * aim).astype(jnp.float32)), found

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))

    def called(dtype, valid=None):
        length = tokens.length
        x, *others = (normal(40 + i, (B, length, *more)) for i, more in enumerate([(D,), *[(N, H)] * 4]))
        return program(params, *(jnp.asarray(y, dtype) for y in (x, *others)), valid)

    return called


@functools.lru_cache(maxsize=4)
def formula(text, mask):
    """Over all pairs, as something reads each: one program of whatever padding."""
    return sloped(text, mask, sequential(T), Reads(lambda name, value: value))


@pytest.mark.parametrize(
    ("text", "mask", "told", "dtype"),
    [
        pytest.param(*case, told, dtype, marks=[pytest.mark.slow] * (i % 2 != often))
        for i, case in enumerate(CASES)
        for told, dtype, often in (
            ("padded", jnp.float32, i % 2),
            ("whole", jnp.float32, 0),
            ("padded", jnp.bfloat16, 1),
        )
    ],
)
def test_what_is_gathered_is_the_formula(text, mask, told, dtype, monkeypatch):
    """Padded always; without padding and in 16 bits one after another, by default."""
    monkeypatch.setattr(choosing, "LONG", 0)
    tokens = padded() if told == "padded" else sequential(T)
    found = sloped(text, mask, tokens, Sites())(dtype)
    known = formula(text, mask)(dtype, np.broadcast_to(tokens.valid, (B, T)))
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
    found = sloped(text, "causal", tokens, Sites())(jnp.float32)
    assert bands
    assert None not in bands
    monkeypatch.setattr(ladder, "LONG", 1101)
    close(found, sloped(text, "causal", tokens, Sites())(jnp.float32), 2e-5)
    assert len(bands) == 1


def test_all_pairs_are_computed_of_few_tokens_and_where_something_is_made_of_each():
    def asked(length, position, site):
        return choosing.over_all_pairs(length, Placed(spec.build("positions", position, "test")), site)

    assert asked(255, "rope", Sites())
    assert not asked(256, "rope", Sites())
    assert asked(256, "alibi", Sites())
    assert asked(256, "mirrored_rope", Sites())
    assert asked(256, "rope", Reads(lambda name, value: value))
