"""Tokens parted for rows that are put among them."""

import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.tokens import joined, sequential


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
