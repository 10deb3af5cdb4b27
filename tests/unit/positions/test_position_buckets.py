"""Buckets of distances: against the definition, and the table that is read by them."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.positions.base import Dims, Matrix
from positionbias.positions.buckets import T5Bias
from positionbias.tokens import sequential


def bucket_of(ahead, buckets, farthest, both_sides):
    """Raffel et al. 2020, section 2.1, a key `ahead` of its query, one number at a time."""
    first = 0
    if both_sides:
        buckets //= 2
        first = buckets if ahead > 0 else 0
        away = abs(ahead)
    else:
        away = max(-ahead, 0)
    exact = buckets // 2
    if away < exact:
        return first + away
    grown = exact + int(round(math.log(away / exact) / math.log(farthest / exact) * (buckets - exact), 9))
    return first + min(grown, buckets - 1)


@pytest.mark.parametrize(
    ("buckets", "farthest", "both_sides"),
    [(32, 128, False), (32, 128, True), (8, 16, False), (4, 9, True), (2, 2, False), (6, 100, False)],
)
def test_buckets_are_those_of_the_definition(buckets, farthest, both_sides):
    scheme = T5Bias(buckets, farthest, both_sides)
    table = jnp.stack([jnp.arange(buckets), 100 + jnp.arange(buckets)]).astype(jnp.float32)
    tokens = sequential(2 * farthest + 3)
    found = np.asarray(scheme.bias(tokens.rows(), tokens.columns(), 2, {"table": table}))
    size = tokens.length
    wanted = [[bucket_of(j - i, buckets, farthest, both_sides) for j in range(size)] for i in range(size)]
    np.testing.assert_array_equal(found, [wanted, 100 + np.array(wanted)])
    assert set(np.unique(wanted)) == set(range(buckets)) - ({buckets // 2} if both_sides else set())


def test_distances_are_exact_then_grow_and_end():
    """Sixteen of their own, sixteen that grow to 128, and one number for all beyond."""
    bucket = T5Bias().bucket()
    assert bucket[:20].tolist() == [*range(16), 16, 16, 16, 17]
    assert bucket[[31, 32, 63, 64, 112, 113, 127, 128]].tolist() == [21, 21, 26, 26, 30, 31, 31, 31]
    assert (np.diff(bucket) >= 0).all()


def test_it_reads_positions_and_adds_a_table_a_layer():
    moved = sequential(3, position=np.array([0, 5, 200]))
    table = jnp.arange(32.0)[None]
    found = T5Bias().bias(moved.rows(), moved.columns(), 1, {"table": table})[0]
    np.testing.assert_array_equal(found, [[0, 0, 0], [5, 0, 0], [31, 31, 0]])
    assert (T5Bias().embeds, T5Bias().rotates, T5Bias().biases) == (False, False, True)
    declared = T5Bias(buckets=8).layer_parameters(Dims(width=8, heads=2, head_size=4, length=6))
    assert declared == {"table": Matrix((2, 8), "position", 8)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t5_bias(buckets=1)", "buckets = 1 is not allowed; allowed: a multiple of 2 up to 65536."),
        ("t5_bias(buckets=7)", "buckets = 7 is not allowed; allowed: a multiple of 2 up to 65536."),
        ("t5_bias(buckets=65538)", "buckets = 65538 is not allowed; allowed: a multiple of 2 up to 65536."),
        ("t5_bias(buckets=6, both_sides=True)", "buckets = 6 is not allowed; allowed: a multiple of 4 up to 65536."),
        (
            "t5_bias(farthest=16)",
            "farthest = 16 is not allowed; allowed: a whole number from 17, behind the distances that have a bucket of"
            " their own, to 65536.",
        ),
        (
            "t5_bias(farthest=65537)",
            "farthest = 65537 is not allowed; allowed: a whole number from 17, behind the distances that have a bucket"
            " of their own, to 65536.",
        ),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("positions", text, "position")
    assert str(error.value) == f"position: {message}"
