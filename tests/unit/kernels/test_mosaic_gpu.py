"""The Mosaic GPU kernels against the formula in float64, in jax's interpreter; and what they refuse."""

from __future__ import annotations

import faulthandler

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.errors import ConfigError
from positionbias.kernels.aux import PerHead, PerKey, PerQuery, Relative
from positionbias.kernels.softmax_attention.call import attention
from positionbias.kernels.softmax_attention.ladder import ladder
from positionbias.kernels.softmax_attention.problem import STATS
from positionbias.kernels.softmax_attention.reference import attention_reference
from positionbias.kernels.softmax_attention.tiles import kept

needs_mosaic_gpu = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="Mosaic GPU needs jax 0.11")
IMPL = "mosaic_gpu_interpret"
TOLERANCE = 2e-2  # of bfloat16, against the largest entry
HANGS = 300  # seconds: a pipeline whose barriers do not match waits for ever


@pytest.fixture(autouse=True)
def _no_waiting():
    faulthandler.dump_traceback_later(HANGS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def _inputs(b=1, t=65, s=65, n=2, g=1, h=16, v=None, dtype=jnp.bfloat16):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=size), dtype) for size in ((b, t, n, h), (b, s, g, h), (b, s, g, v or h))]


def _loss(found, stats):
    """A sum over all that was found, each entry with a weight of its own."""
    o, told = found
    total = 0.0
    for i, (name, x) in enumerate([("o", o), *((name, getattr(told, name)) for name in stats)]):
        weight = np.random.default_rng(i).normal(size=x.shape) * {"mean_position": 0.02}.get(name, 0.3)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        total = total + jnp.sum(jnp.where(x > -1e29, x, 0.0) * weight.astype(np.float32))
    return total


def _compare(arguments, allowed, score=None, real=(), keep=None, stats=(), normalise=True, **told):
    """Outputs, statistics and gradients with respect to q, k, v and the arrays `real` that the score reads.

    `score(s, *real)` works on [B, N, T, S]; `told` is what the call is told beside it.
    """
    blocks = told.pop("block_sizes", (64, 64))
    aux = told.pop("aux", None)
    if aux is not None:
        told["score"] = aux["score"]

    def ours(q, k, v, *real):
        named = {} if aux is None else {name: kind(x) for (name, kind), x in zip(aux["kinds"], real, strict=True)}
        found = attention(q, k, v, aux=named, stats=stats, normalise=normalise, impl=IMPL, block_sizes=blocks, **told)
        return _loss(found, stats), found

    def theirs(q, k, v, *real):
        scored = (lambda s: s) if score is None else (lambda s: score(s, *real))
        found = attention_reference(q, k, v, allowed, scored, None, keep, normalise, blocks)
        return _loss(found, stats), found

    places = tuple(range(3 + len(real)))
    (_, (o, found)), gradients = jax.value_and_grad(ours, places, has_aux=True)(*arguments, *real)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (*arguments, *real)]
        (_, (o2, found2)), gradients2 = jax.value_and_grad(theirs, places, has_aux=True)(*wide)
        pairs = [("o", o, o2), *((name, getattr(found, name), getattr(found2, name)) for name in stats)]
        pairs += [(f"gradient {i}", *pair) for i, pair in enumerate(zip(gradients, gradients2, strict=True))]
        for name, x, y in pairs:
            x, y = np.asarray(x, np.float64), np.asarray(y)
            finite = y > -1e29
            np.testing.assert_array_equal(x > -1e29, finite, err_msg=name)
            most = np.abs(y[finite]).max()
            np.testing.assert_allclose(
                np.where(finite, x, 0) / most, np.where(finite, y, 0) / most, atol=TOLERANCE, err_msg=name
            )


def _index(t, s):
    return np.arange(t)[:, None], np.arange(s)


@needs_mosaic_gpu
def test_causal_with_grouped_queries():
    i, j = _index(65, 65)
    _compare(_inputs(), i >= j, mask=lambda b, h, q, k: q >= k)


@needs_mosaic_gpu
def test_a_window_with_rows_that_see_nothing_and_all_statistics():
    i, j = _index(65, 130)
    allowed = (abs(i + 40 - j) < 30) & (i % 7 != 3)
    _compare(
        _inputs(s=130, n=1, v=32),
        allowed,
        stats=STATS,
        mask=lambda b, h, q, k: (jnp.abs(q + 40 - k) < 30) & (q % 7 != 3),
    )


@needs_mosaic_gpu
def test_documents_and_a_score_with_gradients_of_all_it_reads():
    documents = np.random.default_rng(1).integers(0, 3, size=(2, 65)).astype(np.int32)
    i, j = _index(65, 65)
    allowed = documents[:, None, :, None] == documents[:, None, None, :]
    draw = np.random.default_rng(2)
    slopes = jnp.asarray([0.02, 0.1], jnp.float32)
    rows, columns = (jnp.asarray(draw.normal(size=65), jnp.float32) for _ in range(2))

    def score(s, slope, row, column):
        return 3 * jnp.tanh(s / 3) - slope[:, None, None] * abs(i - j) + row[:, None] * column

    _compare(
        _inputs(b=2),
        allowed,
        score,
        (slopes, rows, columns),
        mask=lambda b, h, q, k: jnp.asarray(documents)[b, q] == jnp.asarray(documents)[b, k],
        aux={
            "score": lambda s, b, h, q, k, slope, row, column: (
                3 * jnp.tanh(s / 3) - slope * jnp.abs(q - k).astype(jnp.float32) + row * column
            ),
            "kinds": (("slope", PerHead), ("row", PerQuery), ("column", PerKey)),
        },
    )


@needs_mosaic_gpu
def test_learned_numbers_for_differences():
    i, j = _index(65, 130)
    lag = jnp.asarray(np.random.default_rng(2).normal(size=(2, 65 + 130 - 1)), jnp.float32)
    _compare(
        _inputs(b=2, s=130),
        i + 60 >= j,
        lambda s, lag: s + lag[:, i - j + 130 - 1],
        (lag,),
        mask=lambda b, h, q, k: q + 60 >= k,
        aux={"score": lambda s, b, h, q, k, lag: s + lag, "kinds": (("lag", Relative),)},
    )


@needs_mosaic_gpu
def test_a_table_of_numbers_that_both_sides_look_up():
    """Which is there for all pairs."""
    i, j = _index(65, 70)
    row, column = (jnp.asarray(np.random.default_rng(n).normal(size=n), jnp.float32) for n in (65, 70))
    _compare(
        _inputs(s=70),
        i >= j,
        lambda s, row, column: s + row[:, None] * column,
        (row, column),
        mask=lambda b, h, q, k: q >= k,
        aux={
            "score": lambda s, b, h, q, k, row, column: s + (row * column)[:, jnp.arange(70)],
            "kinds": (("row", PerQuery), ("column", PerKey)),
        },
    )


@needs_mosaic_gpu
def test_strips_that_visit_no_tile():
    i, j = _index(130, 130)
    stats = ("lse", "received", "block_mass")
    _compare(
        _inputs(t=130, s=130, n=1), (i >= 70) & (j < 60), stats=stats, mask=lambda b, h, q, k: (q >= 70) & (k < 60)
    )


@needs_mosaic_gpu
def test_dropout():
    keep = kept(
        7, 0.3, np.arange(1)[:, None, None, None], np.arange(2)[:, None, None], np.arange(65)[:, None], np.arange(65)
    )
    _compare(_inputs(), np.ones((65, 65), bool), keep=np.asarray(keep), dropout=(0.3, 7))


@needs_mosaic_gpu
def test_a_score_of_minus_infinity_is_as_good_as_a_mask():
    i, j = _index(65, 65)
    _compare(
        _inputs(n=1),
        np.ones((65, 65), bool),
        lambda s: jnp.where(i >= j, s, -jnp.inf),
        stats=("entropy",),
        aux={"score": lambda s, b, h, q, k: jnp.where(q >= k, s, -jnp.inf), "kinds": ()},
    )


@needs_mosaic_gpu
def test_weights_that_are_not_normalised():
    i, j = _index(65, 65)
    _compare(
        _inputs(n=1),
        i <= j,
        stats=("received", "block_mass"),
        normalise=False,
        mask=lambda b, h, q, k: q <= k,
    )


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_large_tiles_with_two_warpgroups_and_masks_of_their_own_for_heads(dtype):
    i, j = _index(200, 200)
    reach = np.array([20, 150])[:, None, None]
    _compare(
        _inputs(t=200, s=200, h=24, dtype=dtype),
        (i - j >= 0) & (i - j < reach),
        stats=("lse", "received"),
        block_sizes=(128, 128),
        mask=lambda b, h, q, k: (q >= k) & (q - k < jnp.asarray([20, 150])[h]),
    )


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize("block_sizes", [(64, 128), (128, 64)])
def test_large_heads_with_all_there_is(block_sizes):
    i, j = _index(65, 200)
    keep = kept(
        7, 0.3, np.arange(1)[:, None, None, None], np.arange(2)[:, None, None], np.arange(65)[:, None], np.arange(200)
    )
    _compare(
        _inputs(s=200, h=80),
        i + 100 >= j,
        lambda s, column: 3 * jnp.tanh(s / 3) + jnp.sin(column),
        (jnp.linspace(0, 3, 200, dtype=jnp.float32),),
        np.asarray(keep),
        STATS,
        dropout=(0.3, 7),
        block_sizes=block_sizes,
        mask=lambda b, h, q, k: q + 100 >= k,
        aux={
            "score": lambda s, b, h, q, k, column: 3 * jnp.tanh(s / 3) + jnp.sin(column),
            "kinds": (("column", PerKey),),
        },
    )


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize("h", [16, 80])
def test_a_score_with_branches(h):
    i, j = _index(65, 65)
    _compare(
        _inputs(h=h, n=1),
        i >= j,
        lambda s, column: s + jnp.sin(column * s),
        (jnp.linspace(0, 2, 65, dtype=jnp.float32),),
        mask=lambda b, h, q, k: q >= k,
        block_sizes=(128, 64),
        stats=("received",),
        aux={
            "score": lambda s, b, h, q, k, column: s + jnp.sin(column * s),
            "kinds": (("column", PerKey),),
        },
    )


@needs_mosaic_gpu
@pytest.mark.slow
def test_a_mask_that_is_given_for_all_pairs():
    given = np.random.default_rng(3).random((65, 130)) < 0.5
    _compare(_inputs(s=130), given, mask=lambda b, h, q, k: jnp.asarray(given)[q, k])


@needs_mosaic_gpu
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": jnp.float32}, "q is float32"),
        ({"h": 144}, "the head size of q is 144"),
        ({"block_sizes": (64, 96)}, r"block_sizes\[1\] = 96"),
        ({"score": lambda s, b, h, q, k: jnp.arctan(s)}, "score takes atan"),
    ],
)
def test_what_is_refused(change, why):
    told = {"block_sizes": (64, 64), **{name: change.pop(name) for name in ("block_sizes", "score") if name in change}}
    with pytest.raises(ConfigError, match=why):
        attention(*_inputs(**change), impl=IMPL, **told)


def test_the_chip_is_asked_for_by_name():
    with pytest.raises(ConfigError, match="the platform is cpu"):
        attention(*_inputs(), impl="mosaic_gpu", block_sizes=(64, 64))


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="this jax has it")
def test_older_jax_is_refused():
    with pytest.raises(ConfigError, match=r"Mosaic GPU needs 0\.11"):
        attention(*_inputs(), impl=IMPL, block_sizes=(64, 64))


def test_no_ladder_takes_it():
    drivers = [driver.name for platform in ("cpu", "gpu", "tpu") for driver, _ in ladder(_problem(), platform)]
    assert not [name for name in drivers if name.startswith("mosaic_gpu")]


def _problem():
    from positionbias.kernels.softmax_attention.call import posed

    return posed(*_inputs(), None, None, None, {}, None, None, (), True, None, None)
