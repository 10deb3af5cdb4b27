"""Tokens parted for rows that are put among them, and the rings of a grid."""

import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.tokens import joined, of_both, own_and_shared, rings, sequential


def laid_out(tokens):
    return {name: np.asarray(field).tolist() for name, field in tokens._asdict().items()}


@pytest.fixture(params=[np.asarray, jnp.asarray], ids=["numpy", "jax"])
def tokens(request):
    made = sequential(4, position=np.array([2, 5, 5, 9], np.int32), segment=np.ones(4, np.int32))
    made = made._replace(role=np.full(4, 3, np.int32), mode=np.ones(4, np.int32), valid=np.array([True, False] * 2))
    return type(made)(*(request.param(field) for field in made.told_context(2)))


def test_rows_in_front_start_at_position_0(tokens):
    found = laid_out(joined(tokens.parted(0, 2)))
    assert found["index"] == [0, 1, 2, 3, 4, 5]
    assert found["position"] == [0, 1, 4, 7, 7, 11]
    assert found["segment"] == [0, 0, 1, 1, 1, 1]
    assert found["role"] == [0, 0, 3, 3, 3, 3]
    assert found["valid"] == [True, True, True, False, True, False]
    assert found["context"] == [1, 1, 1, 1, 0, 0]
    assert found["mode"] == [1, 1, 1, 1, 1, 1]


def test_a_row_in_between_follows_on_the_one_before(tokens):
    parts = tokens.parted(2)
    assert [part.length for part in parts] == [2, 1, 2]
    found = laid_out(joined(parts))
    assert found["index"] == [0, 1, 2, 3, 4]
    assert found["position"] == [2, 5, 6, 6, 10]
    assert found["role"] == [3, 3, 0, 3, 3]
    assert found["valid"] == [True, False, True, True, False]
    assert found["context"] == [1, 1, 1, 0, 0]


def test_types_and_leading_axes_stay(tokens):
    own = tokens._replace(position=np.stack([tokens.position, tokens.position + 1]))
    found = joined(own.parted(4))
    assert found.position.shape == (2, 5)
    assert np.asarray(found.position).tolist() == [[2, 5, 5, 9, 10], [3, 6, 6, 10, 11]]
    for before, after in zip(tokens, joined(tokens.parted(1)), strict=True):
        assert isinstance(after, np.ndarray) == isinstance(before, np.ndarray)
        assert before.dtype == after.dtype


@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_spare_position_is_told_to_the_new_row_and_moves_nobody(tokens, at):
    xp = tokens.index.__array_namespace__()
    position = xp.asarray([[9, 4, 4, 0, 7], [1, 2, 3, 4, 5]], dtype=xp.int32)
    told = tokens.sparing(at, position)
    assert told.position.shape == (2, 4)
    assert told.position.dtype == told.spare.dtype == np.int32
    found = joined(told.parted(at))
    np.testing.assert_array_equal(found.position, position)
    assert (np.asarray(found.spare) == -1).all(), "it is spent"
    np.testing.assert_array_equal(found.index, range(5))


def test_time_is_that_of_the_last_frame_begun():
    tokens = sequential(8, frame=np.array([0, 2, 2, 0, 1, 3, 0, 0], np.int32))
    assert tokens.told_context(0).time.tolist() == [0, 2, 2, 2, 1, 3, 3, 3]
    padded = tokens._replace(valid=np.array([True] * 5 + [False] + [True] * 2))
    assert padded.told_context(0).time.tolist() == [0, 2, 2, 2, 1, 3, 2, 2]
    traced = jnp.asarray(np.stack([tokens.frame, tokens.frame[::-1]]))
    assert tokens._replace(frame=traced).told_context(0).time.tolist() == [
        [0, 2, 2, 2, 1, 3, 3, 3],
        [0, 0, 3, 1, 3, 2, 2, 3],
    ]


def test_a_new_row_is_of_the_time_of_the_row_before():
    told = sequential(4, frame=np.array([1, 2, 0, 3], np.int32)).told_context(3)
    assert joined(told.parted(3)).time.tolist() == [1, 2, 2, 2, 3]
    assert joined(told.parted(0)).time.tolist() == [0, 1, 2, 2, 3]


def test_own_fields_and_shared_ones_make_the_tokens_again(tokens):
    mixed = tokens._replace(hidden=np.ones((3, 4), np.int32))
    own, shared = own_and_shared(mixed)
    assert [name for name, field in own._asdict().items() if field is not None] == ["hidden"]
    assert shared.hidden is None
    assert laid_out(of_both(own, shared)) == laid_out(mixed)


def test_rings_are_counted_inwards_from_the_border():
    np.testing.assert_array_equal(rings(1), [0])
    np.testing.assert_array_equal(rings(3).reshape(3, 3), [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(rings(4).reshape(4, 4), [[0] * 4, [0, 1, 1, 0], [0, 1, 1, 0], [0] * 4])
    assert (rings(24).dtype, rings(24).shape, rings(24).max() + 1) == (np.int32, (576,), 12)
    with pytest.raises(spec.ConfigError, match=r"^side = 0 is not allowed"):
        rings(0)
