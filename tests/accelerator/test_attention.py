"""Attention on the chip: every driver that can run there, against the formula in float64 on the CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import tokens
from positionbias.errors import ConfigError
from positionbias.kernels import PerHead, attention, choice
from positionbias.kernels.softmax_attention.ladder import DRIVERS
from positionbias.kernels.softmax_attention.problem import STATS
from positionbias.kernels.softmax_attention.reference import attention_reference
from positionbias.kernels.softmax_attention.tiles import kept
from positionbias.masks.drawn import RandomGraph
from positionbias.masks.groups import Segments
from positionbias.masks.order import Causal, SlidingWindow

PLATFORM = jax.default_backend()
pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(PLATFORM == "cpu", reason="there is no GPU or TPU"),
]
ON_CHIP = [name for name in DRIVERS if "interpret" not in name]
TYPES = ["bfloat16", "float32"]
# Of the largest number wanted, for the worst entry; and of the root of the mean square, for all.
WORST = {"bfloat16": 4e-2, "float32": 1e-4}
OVERALL = {"bfloat16": 1.5e-2, "float32": 3e-5}
BATCH, HEADS, GROUPS = 2, 4, 2
TILE = 128
RATE, SEED = 0.3, 11
MASKS = {
    "none": None,
    "causal": Causal(),
    "window": Causal() & SlidingWindow(50),
    "documents": Segments(),
    "random": RandomGraph(0.1),
}
# Mask, T, S, head size.
CASES = {
    "plain": ("none", 256, 256, 64),
    "causal": ("causal", 384, 384, 64),
    "causal, wide heads": ("causal", 256, 256, 128),
    "causal, ragged": ("causal", 200, 200, 64),
    "window, ragged": ("window", 333, 333, 128),
    "documents, ragged": ("documents", 300, 300, 64),
    "random, ragged": ("random", 261, 261, 128),
    "random, more keys than queries": ("random", 130, 300, 64),
}


def sides(case):
    """Tokens of queries and of keys: in `documents` of each example its own, and padding at the end of one."""
    name, rows, columns, _ = CASES[case]
    made = tuple(tokens.sequential(length) for length in (rows, columns))
    if name != "documents":
        return made
    lengths = np.arange(rows)
    segment = np.stack([lengths // 77, lengths // 130]).astype(np.int32)
    valid = np.stack([lengths < rows, lengths < rows - 40])
    return (made[0]._replace(segment=segment, valid=valid),) * 2


def visible(case):
    """Which pairs are allowed, of a shape that broadcasts to [B, N, T, S]."""
    mask = MASKS[CASES[case][0]]
    if mask is None:
        return np.ones((1, 1, 1, 1), bool)
    found = np.asarray(mask.dense(*sides(case)))
    return found[:, None] if found.ndim == 3 else found


@functools.cache
def arrays(case, kind):
    """q, k, v, the bias of keys, slopes of heads, and weights of outputs: numbers that `kind` holds exactly."""
    _, rows, columns, size = CASES[case]
    draw = np.random.default_rng(0)
    shapes = (
        (BATCH, rows, HEADS, size),
        (BATCH, columns, GROUPS, size),
        (BATCH, columns, GROUPS, size),
        (BATCH, GROUPS, columns),
        (HEADS,),
        (BATCH, rows, HEADS, size),
    )
    kinds = [kind] * 3 + ["float32"] * 2 + [kind]
    return [draw.normal(size=shape).astype(jnp.dtype(one)) for shape, one in zip(shapes, kinds, strict=True)]


def total(o, stats, w, asked):
    """The loss: outputs weighed by `w`, or the statistics asked for weighed by numbers drawn alike everywhere."""
    if not asked:
        return jnp.sum(o.astype(w.dtype) * w)
    loss = 0.0
    for name in asked:
        found = getattr(stats, name)
        weigh = np.random.default_rng(STATS.index(name)).normal(size=found.shape)
        loss += jnp.sum(jnp.where(found > -1e29, found, 0.0) * weigh)
    return loss


def computed(driver, case, kind, asked=(), ruled=False, dropout=False):
    """What the driver makes: value, outputs and statistics, and gradients; skips with the reason if it cannot."""
    mask = MASKS[CASES[case][0]]
    more = {"mask": mask, "impl": driver, "block_sizes": (TILE, TILE)}
    more |= {"stats": list(asked)} if asked else {}
    more |= {"tokens": sides(case)} if mask is not None else {}
    more |= {"dropout": (RATE, SEED)} if dropout else {}

    def call(function, q, k, v, bias, slopes):
        rules = {"score": _rule, "aux": {"slope": PerHead(slopes)}, "key_bias": bias} if ruled else {}
        return function(q, k, v, **rules, **more)

    *given, w = (jnp.asarray(x) for x in arrays(case, kind))
    try:
        call(choice, *given)
    except ConfigError as error:
        pytest.skip(str(error))

    def loss(*given):
        found = call(attention, *given)
        o, stats = found if asked else (found, None)
        return total(o, stats, w.astype(jnp.float32), asked), (o, stats)

    count = 5 if ruled else 3
    ready = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(count)), has_aux=True))
    (_, found), gradients = ready(*given)
    return found, gradients


def _rule(s, b, h, q, k, slope):
    return 20 * jnp.tanh((s - 0.05 * slope * abs(q - k)) / 20)


@functools.cache
def wanted(case, kind, asked=(), ruled=False, dropout=False):
    """The same by the formula, in float64 on the CPU."""
    _, rows, columns, _ = CASES[case]
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        *given, w = (jnp.asarray(np.asarray(x, np.float64)) for x in arrays(case, kind))
        allowed, q, k = jnp.asarray(visible(case)), jnp.arange(rows)[:, None], jnp.arange(columns)[None]
        keep = None
        if dropout:
            batch, head = jnp.arange(BATCH)[:, None, None, None], jnp.arange(HEADS)[:, None, None]
            places = (x.astype(jnp.int32) for x in (batch, head, q, k))
            keep = kept(jnp.asarray(SEED, jnp.int32), RATE, *places)

        def loss(*given):
            bias, slopes = given[3:]

            def score(s):
                by_key = jnp.repeat(bias, HEADS // GROUPS, axis=1)[:, :, None]
                return _rule(s + by_key, None, None, q, k, slopes[:, None, None])

            more = {"score": score} if ruled else {}
            o, stats = attention_reference(*given[:3], allowed, keep=keep, block_sizes=(TILE, TILE), **more)
            return total(o, stats, w, asked), (o, stats)

        count = 5 if ruled else 3
        (_, found), gradients = jax.value_and_grad(loss, argnums=tuple(range(count)), has_aux=True)(*given)
        return jax.tree.map(np.asarray, (found, gradients))


def alike(name, found, want, kind):
    """Whether numbers agree as far as their type allows."""
    found, want = np.asarray(found, np.float64), np.asarray(want, np.float64)
    assert found.shape == want.shape, name
    nothing = want < -1e29
    assert (found[nothing] < -1e29).all(), name
    found, want = np.where(nothing, 0.0, found), np.where(nothing, 0.0, want)
    assert np.isfinite(found).all(), name
    apart = abs(found - want)
    entry = tuple(map(int, np.unravel_index(apart.argmax(), apart.shape)))
    told = f"{name}: worst {apart.max():.3g} of {abs(want).max():.3g}, in entry {entry}"
    assert apart.max() <= WORST[kind] * abs(want).max() + 1e-6, told
    assert np.sqrt((apart**2).mean()) <= OVERALL[kind] * np.sqrt((want**2).mean()) + 1e-7, told


def compare(driver, case, kind, asked=(), **more):
    (o, stats), gradients = computed(driver, case, kind, asked, **more)
    (o_wanted, stats_wanted), gradients_wanted = wanted(case, kind, asked, **more)
    alike("outputs", o, o_wanted, kind)
    for name in asked:
        alike(name, getattr(stats, name), getattr(stats_wanted, name), kind)
    names = [f"gradient of {name}" for name in ("q", "k", "v", "key_bias", "slopes")]
    for name, one, want in zip(names, gradients, gradients_wanted, strict=False):
        alike(name, one, want, kind)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("driver", ON_CHIP)
def test_outputs_and_gradients(driver, kind, case):
    compare(driver, case, kind)


@pytest.mark.parametrize("asked", [(name,) for name in STATS] + [STATS], ids="+".join)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("driver", ON_CHIP)
def test_statistics_and_their_gradients(driver, kind, asked):
    compare(driver, "causal, ragged", kind, asked)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("driver", ON_CHIP)
def test_statistics_of_rows_that_see_nothing(driver, kind):
    compare(driver, "documents, ragged", kind, STATS)


@pytest.mark.parametrize("asked", [(), STATS], ids=["outputs", "statistics"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("driver", ON_CHIP)
def test_rules_on_scores_and_gradients_of_what_they_read(driver, kind, asked):
    compare(driver, "window, ragged", kind, asked, ruled=True)


@pytest.mark.parametrize("case", ["causal, ragged", "random, more keys than queries"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("driver", ON_CHIP)
def test_dropout_drops_the_same_everywhere(driver, kind, case):
    compare(driver, case, kind, dropout=True)


@pytest.mark.parametrize("kind", TYPES)
def test_the_ladder_chooses_what_can(kind):
    compare(None, "causal", kind)
    compare(None, "random, ragged", kind, STATS)
