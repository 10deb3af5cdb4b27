"""Schemes that rotate: each variant against plain RoPE, and all against complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.positions.base import Dims
from positionbias.positions.rotary import DualRoPE, RoPE, XPos
from positionbias.tokens import sequential

SIZE = 8
POSITIONS = np.array([0, 1, 2, 5, 9, 40])
FRAMES = np.array([1, 1, 1, 2, 2, 4])


def vectors(seed=0, size=SIZE):
    return jax.random.normal(jax.random.key(seed), (1, len(POSITIONS), 2, size))


def rotated(scheme, x, position=POSITIONS, side="query", frame=None):
    frame = np.zeros_like(position) if frame is None else frame
    tokens = sequential(len(position), position=position, frame=frame).told_context(0)
    return np.asarray(scheme.rotate(x, tokens, {}, side))


def scores(scheme, position=POSITIONS, frame=None):
    """[T, S] of one head, where every token has the same query and the same key, so that only positions differ."""
    q, k = (jnp.broadcast_to(vectors(seed)[:, :1, :1], (1, len(position), 1, SIZE)) for seed in (0, 1))
    q, k = rotated(scheme, q, position, "query", frame), rotated(scheme, k, position, "key", frame)
    return np.einsum("BTNH,BSNH->TS", q, k)


def by_complex_numbers(frequency, decay=1.0):
    """What `scores` should be: pair m turns by `frequency`, and its share shrinks by `decay` a position."""
    q, k = (np.asarray(vectors(seed)[0, 0, 0], np.float64).reshape(-1, 2) @ [1, 1j] for seed in (0, 1))
    away = (POSITIONS[:, None] - POSITIONS)[..., None]
    return (q * k.conj() * np.exp(1j * away * frequency) * decay**away).real.sum(-1)


def frequencies(size=SIZE, base=10000.0):
    return base ** (-np.arange(0, size, 2) / size)


def test_halves_are_neighbours_after_a_permutation_of_features():
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # pair m of the halves is (m, m + 4)
    halves = rotated(RoPE(pairs="halves"), vectors())
    np.testing.assert_array_equal(halves[..., order], rotated(RoPE(), vectors()[..., order]))
    assert not np.allclose(halves, rotated(RoPE(), vectors()))


@pytest.mark.parametrize("pairs", ["neighbours", "halves"])
def test_a_fraction_turns_the_first_features_alone(pairs):
    x = vectors()
    found = rotated(RoPE(fraction=0.5, pairs=pairs), x)
    np.testing.assert_array_equal(found[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(found[..., :4], rotated(RoPE(pairs=pairs), x[..., :4]))


def test_a_fraction_is_rounded_down_but_not_below_a_whole_number():
    for fraction, size, turned in ((0.3, 8, 2), (0.58, 100, 58), (1.0, 8, 8)):
        x = vectors(size=size)
        found = rotated(RoPE(fraction=fraction), x)[0, 3, 0]
        assert (found != np.asarray(x)[0, 3, 0]).tolist() == [True] * turned + [False] * (size - turned)


def test_linear_scaling_by_two_at_twice_the_position_is_plain():
    linear = RoPE(scaling="linear", factor=2.0)
    np.testing.assert_array_equal(rotated(linear, vectors(), 2 * POSITIONS), rotated(RoPE(), vectors()))
    assert not np.allclose(rotated(linear, vectors()), rotated(RoPE(), vectors()))


@pytest.mark.parametrize("fraction", [1.0, 0.75])
def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor(fraction):
    size = int(SIZE * fraction)
    ones = jnp.ones((1, 1, 1, SIZE)) * jnp.array([1.0, 0.0] * (SIZE // 2))
    found = rotated(RoPE(base=4.0, fraction=fraction, scaling="ntk", factor=2.0), ones, np.array([1]))[0, 0, 0]
    angle = np.arctan2(found[1:size:2], found[:size:2])
    plain = frequencies(size, 4.0)
    np.testing.assert_allclose(angle[[0, -1]], [1.0, plain[-1] / 2], rtol=1e-5)
    assert (angle[1:-1] < plain[1:-1]).all()
    assert (angle[1:-1] > plain[1:-1] / 2).all()


@pytest.mark.parametrize(
    "text",
    [
        "rope",
        "rope(base=100)",
        "rope(fraction=0.5)",
        "rope(pairs='halves')",
        "rope(scaling='linear', factor=4)",
        "rope(scaling='ntk', factor=4)",
        "rope(fraction=0.75, scaling='ntk', factor=4, pairs='halves')",
        "xpos(scale_base=20)",
        "dual_rope",
    ],
)
def test_scores_depend_on_differences_only(text):
    scheme, position = spec.build("positions", text, "position"), np.arange(7)
    found = scores(scheme, position)
    for offset in range(-6, 7):
        diagonal = np.diagonal(found, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=2e-5)
    assert np.std(found[0]) > 0.01


def test_rope_is_a_product_of_complex_numbers():
    np.testing.assert_allclose(scores(RoPE()), by_complex_numbers(frequencies()), atol=1e-4)


def test_xpos_is_rope_times_the_decay_of_each_pair():
    s = (np.arange(0, SIZE, 2) + 0.4 * SIZE) / (1.4 * SIZE)
    found = scores(XPos(scale_base=20.0))
    np.testing.assert_allclose(found, by_complex_numbers(frequencies(), s ** (1 / 20)), atol=1e-3)
    assert s[0] == pytest.approx(2 / 7)


def test_xpos_fades_with_causal_distance():
    x = jnp.zeros((1, 1, 1, SIZE)).at[..., 0].set(1.0)  # the fastest pair alone
    at = np.arange(30)
    query = rotated(XPos(scale_base=20.0), x, np.array([29]), "query")
    keys = rotated(XPos(scale_base=20.0), jnp.broadcast_to(x, (1, 30, 1, SIZE)), at, "key")
    sizes = np.linalg.norm(query) * np.linalg.norm(keys[0, :, 0], axis=-1)
    np.testing.assert_allclose(sizes, (2 / 7) ** ((29 - at) / 20), rtol=1e-4)


def test_xpos_is_finite_at_the_last_position_it_allows():
    scheme, last = XPos(scale_base=1.0), 64
    scheme.check(Dims(SIZE, 1, SIZE, last + 1))
    found = scores(scheme, np.array([0, last]))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[1, 1], found[0, 0], rtol=1e-3)


def test_dual_rope_without_gamma_is_rope():
    found = rotated(DualRoPE(gamma=0.0), vectors(), frame=FRAMES)
    np.testing.assert_array_equal(found, rotated(RoPE(), vectors()))


def test_text_is_of_the_time_of_the_last_frame_before_it():
    frame = np.array([0, 1, 1, 2, 0, 0], np.int32)
    found = scores(DualRoPE(gamma=3.0), frame=frame)
    expected = scores(RoPE(), POSITIONS + 3 * np.array([0, 1, 1, 2, 2, 2], np.int32))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_dual_rope_within_a_frame_is_rope_and_across_frames_is_further():
    found, plain = scores(DualRoPE(gamma=3.0), frame=FRAMES), scores(RoPE())
    same = FRAMES[:, None] == FRAMES
    np.testing.assert_allclose(found[same], plain[same], atol=1e-4)
    np.testing.assert_allclose(found, scores(RoPE(), POSITIONS + 3 * FRAMES), atol=1e-4)
    assert (np.abs(found - plain)[~same] > 1e-3).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rope(fraction=0)", "fraction = 0.0 is not allowed; allowed: a number above 0 and at most 1."),
        ("rope(fraction=1.5)", "fraction = 1.5 is not allowed; allowed: a number above 0 and at most 1."),
        (
            "rope(factor=2)",
            "factor = 2.0 is not allowed; allowed: 1 where scaling is 'none', else scaling='linear' or scaling='ntk'.",
        ),
        (
            "rope(scaling='linear', factor=0.5)",
            "factor = 0.5 is not allowed; allowed: a number from 1 to 65536.",
        ),
        ("xpos(base=1)", "base = 1.0 is not allowed; allowed: a number above 1."),
        ("xpos(scale_base=0)", "scale_base = 0.0 is not allowed; allowed: a number above 0."),
        ("dual_rope(base=1)", "base = 1.0 is not allowed; allowed: a number above 1."),
        ("dual_rope(gamma=1e9)", "gamma = 1000000000.0 is not allowed; allowed: a number from -65536 to 65536."),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("positions", text, "position")
    assert str(error.value) == f"position: {message}"


def test_a_wrong_choice_names_the_right_ones():
    with pytest.raises(spec.ConfigError) as error:
        spec.build("positions", "rope(pairs='half')", "position")
    told = "position.pairs: 'half' is not allowed, did you mean 'halves'; allowed: 'neighbours' or 'halves'."
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (
            RoPE(fraction=0.75),
            "rope.fraction = 0.75 turns 3 of the 4 features of a head; allowed: a fraction that turns an even number of"
            " them, from 2.",
        ),
        (
            RoPE(fraction=0.2),
            "rope.fraction = 0.2 turns 0 of the 4 features of a head; allowed: a fraction that turns an even number of"
            " them, from 2.",
        ),
        (
            RoPE(fraction=0.5, scaling="ntk", factor=2.0),
            "rope.scaling = 'ntk' slows all pairs but the first, and only one pair turns; allowed: 'none' or 'linear',"
            " or a larger head size or fraction.",
        ),
        (
            XPos(scale_base=1.5),
            "xpos.scale_base = 1.5 takes keys at position 99 out of the range of float32; allowed: a number from 2.",
        ),
    ],
)
def test_sizes_a_scheme_cannot_serve(scheme, message):
    with pytest.raises(spec.ConfigError) as error:
        scheme.check(Dims(width=8, heads=2, head_size=4, length=100))
    assert str(error.value) == message


@pytest.mark.parametrize(("scheme", "name"), [(XPos(), "xpos"), (DualRoPE(), "dual_rope")])
def test_odd_heads_are_refused(scheme, name):
    with pytest.raises(spec.ConfigError, match=rf"{name} needs an even head size .*, got 3; allowed: even numbers\."):
        scheme.check(Dims(width=6, heads=2, head_size=3, length=4))
