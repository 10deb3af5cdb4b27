"""Toeplitz matrices by their shapes alone, against the matrix written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.kernels.differences import at_rows, column_of, diagonal, diagonal_tiles, diagonals, spread
from positionbias.kernels.rules import Argument, split

SIZES = [(1, 1), (1, 4), (6, 1), (5, 7), (9, 4)]
BLOCKS = [(1, 1), (2, 2), (4, 6), (3, 2), (16, 8)]


def drawn(rows, columns):
    return np.random.default_rng(0).normal(size=(2, 3, rows + columns - 1)).astype(np.float32)


def written_out(window, rows, columns):
    return window[..., np.arange(rows)[:, None] - np.arange(columns) + columns - 1]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_spread(rows, columns):
    window = drawn(rows, columns)
    np.testing.assert_array_equal(spread(window, rows, columns), written_out(window, rows, columns))


def test_the_gradient_of_spread_is_the_sum_of_each_diagonal():
    window, given = drawn(5, 7), np.random.default_rng(1).normal(size=(2, 3, 5, 7)).astype(np.float32)
    known, found = (jax.vjp(lambda x, f=f: f(x, 5, 7), jnp.asarray(window))[1](given)[0] for f in (written_out, spread))
    np.testing.assert_allclose(found, known, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_some_rows_and_columns(rows, columns):
    window = drawn(rows, columns)
    known = written_out(window, rows, columns)
    for start in range(rows):
        for first, stop in ((0, columns), (columns // 2, columns), (0, (columns + 1) // 2)):
            found = at_rows(window, rows, jnp.int32(start), 3, first, stop - first)
            assert found.shape[-2:] == (3, stop - first)
            there = min(3, rows - start)
            np.testing.assert_array_equal(found[..., :there, :], known[..., start : start + there, first:stop])


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_tiles_of_diagonals(rows, columns, blocks):
    window, tiles = drawn(rows, columns), (-(-rows // blocks[0]), -(-columns // blocks[1]))
    known = written_out(window, rows, columns)
    found = np.asarray(jax.jit(diagonal_tiles, static_argnums=(1, 2, 3))(window, (rows, columns), blocks, tiles))
    assert found.shape == (2, 3, diagonals(blocks, tiles), *blocks)
    met = set()
    for row, column in np.ndindex(*tiles):
        number = diagonal(blocks, tiles, row, column)
        part = known[..., row * blocks[0] : (row + 1) * blocks[0], column * blocks[1] : (column + 1) * blocks[1]]
        np.testing.assert_array_equal(found[:, :, number, : part.shape[-2], : part.shape[-1]], part)
        assert column_of(blocks, tiles, number, row) == (column, True)
        met.add((number, row))
    for number, row in np.ndindex(diagonals(blocks, tiles), tiles[0]):
        assert bool(column_of(blocks, tiles, number, row)[1]) == ((number, row) in met)


def test_what_a_rule_makes_of_a_number_for_each_difference():
    """Arithmetic leaves it as it is; what pairs more has it for all pairs."""
    window, table = drawn(5, 7)[0], np.arange(20, dtype=np.float32)
    given = [Argument(np.arange(3)[:, None, None]), Argument(window, by_difference=True)]
    rule = split(lambda s, h, x: s + h * jnp.tanh(x), given, (3, 5, 7), "score", np.float32)
    assert [x.shape for x in rule.operands] == [(1, 3, 1, 1), (1, 3, 9 + 2)]
    assert rule.dense_because is None
    np.testing.assert_array_equal(rule.operands[1][0], window)
    assert isinstance(rule.operands[1], np.ndarray)
    number = [Argument(np.arange(11) % 4, by_difference=True)]
    looked = split(lambda x: jnp.asarray(table)[x + 2] > 3, number, (3, 5, 7), "mask")
    assert [x.shape for x in looked.operands] == [(1, 1, 5, 7)]
    assert "gather" in looked.dense_because
    np.testing.assert_array_equal(looked(looked.operands)[0, 0], table[written_out(np.arange(11) % 4, 5, 7) + 2] > 3)
    assert isinstance(looked.operands[0], np.ndarray)
