"""Position schemes: literal identities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.positions.additive import Learned, NoPosition, OneHot, Sinusoidal
from positionbias.positions.base import Dims, Matrix
from positionbias.positions.distance import ALiBi, Decay, alibi_slopes
from positionbias.positions.rotary import RoPE
from positionbias.tokens import sequential

DIMS = Dims(width=8, heads=2, head_size=4, length=6)


def test_alibi_slopes_of_a_power_of_two():
    assert alibi_slopes(8) == [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]


def test_alibi_slopes_of_another_number_fill_up_from_the_double():
    assert alibi_slopes(6) == [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]
    assert alibi_slopes(1) == [0.00390625]


def test_alibi_bias_is_slope_times_two_sided_distance():
    tokens = sequential(3)
    bias = ALiBi().bias(tokens.rows(), tokens.columns(), 2, {})
    distance = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    np.testing.assert_array_equal(bias, [-distance / 16, -distance / 256])


def test_decay_is_one_head_of_alibi_with_slope_minus_log_gamma():
    tokens = sequential(5)
    # One head of ALiBi has slope 1/256.
    decay = Decay(gamma=math.exp(-1 / 256)).bias(tokens.rows(), tokens.columns(), 1, {})
    np.testing.assert_allclose(decay, ALiBi().bias(tokens.rows(), tokens.columns(), 1, {}), rtol=1e-6)


def test_decay_multiplies_weights_by_gamma_a_step():
    tokens = sequential(4)
    weights = np.exp(Decay(gamma=0.8).bias(tokens.rows(), tokens.columns(), 3, {}))
    np.testing.assert_allclose(np.broadcast_to(weights, (3, 4, 4))[2, 3], [0.512, 0.64, 0.8, 1.0], rtol=1e-6)


def test_decay_of_one_is_no_decay():
    tokens = sequential(4)
    assert (Decay(gamma=1.0).bias(tokens.rows(), tokens.columns(), 1, {}) == 0).all()


def test_biases_read_position_and_not_index():
    moved = sequential(3, position=np.array([0, 5, 6]))
    found = ALiBi().bias(moved.rows(), moved.columns(), 1, {})
    np.testing.assert_array_equal(found[0], np.array([[0, 5, 6], [5, 0, 1], [6, 1, 0]]) / -256)


def rotated_scores(scheme, shift=0):
    q, k = (jax.random.normal(jax.random.key(i), (1, 6, 1, 8)) for i in (0, 1))
    # The same two vectors at every position, so that scores can differ through positions only.
    q, k = (jnp.broadcast_to(x[:, :1], x.shape) for x in (q, k))
    at = sequential(6, position=np.arange(6) + shift)
    return np.asarray(jnp.einsum("BTNH,BSNH->TS", scheme.rotate(q, at, {}, "query"), scheme.rotate(k, at, {}, "key")))


def test_rope_scores_depend_on_differences_only():
    scores = rotated_scores(RoPE())
    for offset in range(-5, 6):
        diagonal = np.diagonal(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.std(scores[0]) > 0.01


def test_rope_scores_do_not_move_with_a_shift():
    np.testing.assert_allclose(rotated_scores(RoPE(), shift=100), rotated_scores(RoPE()), atol=1e-4)


def test_rope_turns_neighbouring_pairs():
    x = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    turned = RoPE(base=100.0).rotate(x, sequential(1, position=np.array([3])), {}, "query")[0, 0, 0]
    # Frequencies 1 and 100^(-1/2) = 0.1.
    wanted = [math.cos(3), math.sin(3), -math.sin(0.3), math.cos(0.3)]
    np.testing.assert_allclose(turned, wanted, atol=1e-6)


def test_rope_leaves_position_zero_alone():
    x = jax.random.normal(jax.random.key(0), (2, 1, 3, 8))
    np.testing.assert_array_equal(RoPE().rotate(x, sequential(1), {}, "query"), x)


def test_sinusoidal_literal():
    found = Sinusoidal(base=100.0, scale=2.0).embed(jnp.ones((1, 2, 4)), sequential(2, position=np.array([0, 3])), {})
    wanted = [[0, 1, 0, 1], [math.sin(3), math.cos(3), math.sin(0.3), math.cos(0.3)]]
    np.testing.assert_allclose(found[0], 1 + 2 * np.array(wanted), atol=1e-6)


def test_learned_adds_its_table():
    table = jnp.arange(12.0).reshape(3, 4)
    tokens = sequential(4, position=np.array([2, 0, 0, 1]))
    found = Learned().embed(jnp.ones((1, 4, 4)), tokens, {"table": table})
    np.testing.assert_array_equal(found[0], 1 + np.arange(12.0).reshape(3, 4)[[2, 0, 0, 1]])


def test_learned_table_is_as_long_as_the_task_unless_told():
    assert Learned().embedding_parameters(DIMS) == {"table": Matrix((6, 8), "position", 8)}
    assert Learned(length=9).embedding_parameters(DIMS)["table"].shape == (9, 8)


def test_one_hot_lights_the_feature_as_far_from_the_end_as_the_position():
    x = jnp.zeros((1, 3, 6)).at[..., :2].set(7.0)
    found = OneHot().embed(x, sequential(3, position=np.array([0, 3, 1])), {})
    np.testing.assert_array_equal(found[0], [[7, 7, 0, 0, 0, 1], [7, 7, 1, 0, 0, 0], [7, 7, 0, 0, 1, 0]])


def test_one_hot_has_as_many_features_as_the_task_positions_unless_told():
    assert OneHot().own_features(DIMS) == 6
    assert OneHot(slots=7).own_features(DIMS) == 7


@pytest.mark.parametrize(
    ("scheme", "flags"),
    [
        (NoPosition(), (False, False, False)),
        (Learned(), (True, False, False)),
        (Sinusoidal(), (True, False, False)),
        (OneHot(), (True, False, False)),
        (RoPE(), (False, True, False)),
        (ALiBi(), (False, False, True)),
        (Decay(), (False, False, True)),
    ],
)
def test_flags(scheme, flags):
    assert (scheme.embeds, scheme.rotates, scheme.biases) == flags


def test_none_is_the_identity():
    x = jnp.ones((1, 2, 3, 4))
    scheme = NoPosition()
    tokens = sequential(2)
    assert scheme.embed(x, tokens, {}) is x
    assert scheme.rotate(x, tokens, {}, "key") is x
    assert scheme.bias(tokens.rows(), tokens.columns(), 1, {}) is None
    assert scheme.products(x, x, tokens, tokens, {}) is None
    assert scheme.embedding_parameters(DIMS) == scheme.layer_parameters(DIMS) == {}


@pytest.mark.parametrize(
    ("scheme", "dims", "message"),
    [
        (Sinusoidal(), Dims(7, 1, 7, 4), "sinusoidal needs an even model.width, got 7; allowed: even numbers."),
        (
            RoPE(),
            Dims(6, 2, 3, 4),
            "rope needs an even head size (model.width / model.heads), got 3; allowed: even numbers.",
        ),
        (
            Learned(length=5),
            DIMS,
            "learned.length = 5 is shorter than the task's longest sequence; allowed: None or a whole number from 6.",
        ),
        (
            OneHot(slots=5),
            Dims(8, 2, 4, 6),
            "one_hot.slots = 5 does not fit 6 positions and model.width = 8; allowed: None or a whole number from 6 to"
            " 7.",
        ),
        (
            OneHot(slots=5),
            Dims(5, 1, 5, 3),
            "one_hot.slots = 5 does not fit 3 positions and model.width = 5; allowed: None or a whole number from 3 to"
            " 4.",
        ),
        (
            OneHot(),
            Dims(8, 2, 4, 8),
            "one_hot needs a feature of the stream for each of 8 positions and some for the inputs, got model.width ="
            " 8; allowed: whole numbers from 9.",
        ),
    ],
)
def test_sizes_a_scheme_cannot_serve(scheme, dims, message):
    with pytest.raises(spec.ConfigError) as error:
        scheme.check(dims)
    assert str(error.value) == message
    scheme.check(Dims(width=8, heads=2, head_size=4, length=5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learned(length=0)", "position: length = 0 is not allowed; allowed: None or a whole number from 1 to 65536."),
        ("one_hot(slots=0)", "position: slots = 0 is not allowed; allowed: None or a whole number from 1 to 65536."),
        ("sinusoidal(base=1)", "position: base = 1.0 is not allowed; allowed: a number above 1."),
        ("sinusoidal(scale=0)", "position: scale = 0.0 is not allowed; allowed: a number above 0."),
        ("rope(base=1.0)", "position: base = 1.0 is not allowed; allowed: a number above 1."),
        ("decay(gamma=0)", "position: gamma = 0.0 is not allowed; allowed: a number above 0 and at most 1."),
        ("decay(gamma=1.5)", "position: gamma = 1.5 is not allowed; allowed: a number above 0 and at most 1."),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("positions", text, "position")
    assert str(error.value) == message
