"""Softmax under a mask of the operator's own: literal masks, what they are at their ends, and runs side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Reads

from positionbias import kernels, spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Dims, Placed
from positionbias.spec import ConfigError
from positionbias.tokens import sequential

NONE, ROPE = (Placed(spec.build("positions", name, "test")) for name in ("none", "rope"))
T = 12


def arrays(length=T, seed=0):
    return [jax.random.normal(jax.random.key(seed + i), (2, length, 2, 4)) for i in range(3)]


def operator(text):
    return spec.build("operators", text, "test")


def masked(text):
    return spec.build("masks", text, "test")


def mixed(one, given, tokens, mask, position=NONE, params=None):
    return one(*given, tokens, tokens, mask, position, params or {}, Sites())


PRESETS = {
    "power(window=2, sinks=1)": "power_of_two(window=2, sinks=1)",
    "power(block=2)": "power_of_two(block=2)",
    "neighborhood(width=3)": "neighborhood(width=3)",
    "neighborhood(width=2, dilation=3)": "neighborhood(width=2, dilation=3)",
    "neighborhood(width=2, dilation=3, causal=True)": "causal & dilated_window(width=2, dilation=3)",
    "shared_prompt": "shared_prompt",
    "depth_causal": "depth_causal",
    "stochastic(width=3, seed=5)": "random_permutation_window(width=3, seed=5)",
    "stochastic(width=3, circular=True)": "random_permutation_window(width=3, circular=True)",
}


@pytest.mark.parametrize("text", PRESETS)
@pytest.mark.parametrize("layer", ["bidirectional", "causal & ~sliding_window(1)"])
def test_a_preset_is_softmax_under_both_masks(text, layer):
    tokens = sequential(T, segment=np.arange(T) // 3, depth=np.arange(T) % 2)
    one, own = operator(text), masked(PRESETS[text])
    found = mixed(one, arrays(), tokens, masked(layer))
    np.testing.assert_allclose(found, mixed(Softmax(), arrays(), tokens, masked(layer) & own), rtol=1e-5, atol=1e-6)
    allowed = masked(layer).dense(tokens, tokens)
    np.testing.assert_array_equal(one.visible(tokens, tokens, allowed), allowed & own.dense(tokens, tokens))


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("power(window=12)", "causal"),
        ("power(sinks=12)", "causal"),
        ("neighborhood(width=12)", "bidirectional"),
        ("neighborhood(width=12, causal=True)", "causal"),
        ("stochastic(width=12, seed=3)", "causal"),
        ("stochastic(width=7, seed=3, circular=True)", "bidirectional"),
        ("shared_prompt", "causal"),
        ("depth_causal", "causal"),
    ],
)
def test_a_mask_that_reaches_everywhere_leaves_dense_softmax(text, layer):
    found = mixed(operator(text), arrays(), sequential(T), masked(layer))
    np.testing.assert_allclose(found, mixed(Softmax(), arrays(), sequential(T), masked(layer)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sinks", [1, 3, 12])
def test_a_window_over_everything_leaves_dense_softmax_whatever_the_sinks(sinks):
    found = mixed(Softmax(), arrays(), sequential(T), masked(f"causal & window_with_sinks(12, {sinks})"))
    np.testing.assert_allclose(found, mixed(Softmax(), arrays(), sequential(T), masked("causal")), rtol=1e-5, atol=1e-6)


def test_powers_of_two_by_hand():
    tokens = sequential(6)
    seen = operator("power").visible(tokens, tokens, masked("causal").dense(tokens, tokens))
    rows = ["100000", "110000", "111000", "011100", "101110", "010111"]
    np.testing.assert_array_equal(seen, [[c == "1" for c in row] for row in rows])


def test_the_neighbourhood_of_residues_by_hand():
    """NATTEN's example: 12 tokens, width 3, dilation 2; the first sees 0, 2, 4 and the last 7, 9, 11."""
    tokens = sequential(12)
    seen = operator("neighborhood(width=3, dilation=2)").visible(tokens, tokens, np.ones((12, 12), bool))
    assert [np.flatnonzero(seen[i]).tolist() for i in (0, 11)] == [[0, 2, 4], [7, 9, 11]]


def test_a_shared_prompt_is_as_many_runs_outputs_and_gradients():
    prompt, lengths = 4, (3, 2, 3)
    segment = np.concatenate([np.zeros(prompt, int), *(np.full(n, s + 1) for s, n in enumerate(lengths))])
    position = np.concatenate([np.arange(prompt), *(prompt + np.arange(n) for n in lengths)])
    packed = sequential(T, segment=segment, position=position)
    given, weight = arrays(), jax.random.normal(jax.random.key(9), (2, T, 2, 4))

    def together(*x):
        found = mixed(operator("shared_prompt"), x, packed, masked("causal"), ROPE)
        return jnp.sum(found * weight), found

    def apart(*x):
        total, outputs = 0.0, []
        for s in range(len(lengths)):
            rows = np.flatnonzero((segment == 0) | (segment == s + 1))
            found = mixed(Softmax(), [y[:, rows] for y in x], sequential(len(rows)), masked("causal"), ROPE)
            kept = found if s == 0 else found[:, prompt:]
            outputs.append(kept)
            total = total + jnp.sum(kept * weight[:, rows if s == 0 else rows[prompt:]])
        return total, jnp.concatenate(outputs, axis=1)

    found, wanted = (jax.jit(jax.grad(one, argnums=(0, 1, 2), has_aux=True))(*given) for one in (together, apart))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


def test_in_which_order_passes_are_laid_out_does_not_matter():
    index, depth = np.tile(np.arange(6), 2), np.repeat([0, 1], 6)
    tokens = sequential(T, index=index, position=index, depth=depth)
    order = np.random.default_rng(0).permutation(T)
    moved = tokens._replace(**{name: getattr(tokens, name)[order] for name in ("index", "position", "depth")})
    found = mixed(operator("depth_causal"), arrays(), tokens, masked("bidirectional"), ROPE)
    other = mixed(operator("depth_causal"), [x[:, order] for x in arrays()], moved, masked("bidirectional"), ROPE)
    np.testing.assert_allclose(other, found[:, order], rtol=1e-5, atol=1e-6)
    first = mixed(Softmax(), [x[:, :6] for x in arrays()], sequential(6), masked("causal"), ROPE)
    np.testing.assert_allclose(found[:, :6], first, rtol=1e-5, atol=1e-6)


def test_two_gated_windows_are_a_sum_of_two_softmaxes():
    one = operator("gated_stochastic(width=3, seed=1, window=2)")
    dims = Dims(width=6, heads=2, head_size=4, length=T)
    params = {n: jax.random.normal(jax.random.key(4), m.shape) for n, m in one.parameters(dims).items()}
    x = jax.random.normal(jax.random.key(7), (2, T, 6))
    gates = 1 / (1 + np.exp(-(x @ params["direction"] + params["offset"]))).reshape(2, T, 2, 2, 1)
    wanted = 0
    for branch, text in enumerate(["random_permutation_window(3, seed=1)", "sliding_window(2)"]):
        under = masked("causal") & masked(text)
        wanted = wanted + gates[:, :, branch] * mixed(Softmax(), arrays(), sequential(T), under)
    params = params | one.projected(x, x, params)
    found = mixed(one, arrays(), sequential(T), masked("causal"), params=params)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    kept = {}
    site = Reads(lambda name, value: kept.setdefault(name, value))
    by_formula = one(*arrays(), sequential(T), sequential(T), masked("causal"), NONE, params, site)
    np.testing.assert_allclose(by_formula, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kept["pattern"].sum(axis=-1)[0, 1], gates[0, :, :, 1, 0].sum(axis=-1), rtol=1e-5)


def test_segments_merged_by_their_log_sums_are_unsplit():
    """What shared prompts, gates and recursions rest on: the kernel's outputs over sets of keys that share none."""
    q, k, v = arrays()
    parts = [(slice(0, 5), "causal"), (slice(5, T), "causal")]
    found = []
    for keys, text in parts:
        tokens = sequential(T), sequential(T).cut(keys.start, keys.stop)
        out, stats = kernels.attention(q, k[:, keys], v[:, keys], mask=masked(text), tokens=tokens, stats=["lse"])
        found.append((out, stats.lse))
    whole = mixed(Softmax(), (q, k, v), sequential(T), masked("causal"))
    np.testing.assert_allclose(kernels.merge(*found)[0], whole, rtol=1e-5, atol=1e-6)


def test_a_preset_is_generated_with_as_its_rows_are_read():
    """Rows of a step see the mask of the whole sequence, where a shuffle of fewer would be another."""
    one, given = operator("stochastic(width=4, seed=2)"), arrays()
    whole = mixed(one, given, sequential(T), masked("causal"))
    some = sequential(T).cut(7, 9)
    bound = masked("causal").bind(sequential(T), sequential(T))
    found = one.step(given[0][:, 7:9], *given[1:], some, sequential(T), bound, NONE, {}, Sites())
    np.testing.assert_allclose(found, whole[:, 7:9], rtol=1e-5, atol=1e-6)
    assert one.steps
    assert not operator("gated_stochastic(width=4)").steps  # its gates are made of a stream that is not kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("power(window=0)", "operator: window = 0 is not allowed"),
        ("neighborhood(width=0)", "operator: width = 0 is not allowed"),
        ("neighborhood(width=2, dilation=0)", "operator: dilation = 0 is not allowed"),
        ("stochastic(width=2, seed=-1)", "operator: seed = -1 is not allowed"),
        ("gated_stochastic(width=2, window=0)", "operator: window = 0 is not allowed"),
        ("shared_prompt(impl='dense')", "unknown driver 'dense'"),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(ConfigError, match=message):
        spec.build("operators", text, "operator")


def test_what_a_preset_leaves_out_is_told(tiny):
    experiment = build(tiny({"model.operator": "power"}))
    assert experiment.narrowed[0].startswith("layer 0: power mixes 25 of the 36 pairs")
    assert experiment.drivers(8, "cpu") == ["xla_dense"]
