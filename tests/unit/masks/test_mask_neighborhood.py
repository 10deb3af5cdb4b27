"""Neighborhoods against NATTEN's rule written out, wherever the keys are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.tokens import sequential


def window(place, count, width, dilation):
    """NATTEN's window of one query: `width` keys of its residue, shifted inwards at the ends."""
    own = list(range(place % dilation, count, dilation))
    left, right = width // 2, width // 2 + width % 2 - 1
    i = own.index(place)
    start = max(i - left, 0)
    if i + right >= len(own):
        start += len(own) - right - i - 1
    return own[max(start, 0) : max(start, 0) + width]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("dilation", [1, 2, 3, 20])
def test_every_query_has_the_window_of_natten(width, dilation):
    mask = spec.build("masks", f"neighborhood({width}, {dilation})", "mask")
    for count in (1, 2, 5, 12, 13):
        tokens = sequential(count)
        found = mask.dense(tokens, tokens)
        assert [list(np.flatnonzero(row)) for row in found] == [window(i, count, width, dilation) for i in range(count)]


def test_the_literal_of_a_dilated_window():
    tokens = sequential(12)
    found = spec.build("masks", "neighborhood(3, dilation=2)", "mask").dense(tokens, tokens)
    assert list(np.flatnonzero(found[0])) == [0, 2, 4]
    assert list(np.flatnonzero(found[11])) == [7, 9, 11]


def test_the_ends_are_those_of_the_keys_wherever_they_are_stored():
    tokens = sequential(12)
    mask = spec.build("masks", "neighborhood(3)", "mask")
    part = tokens.cut(5, 10)
    wanted = mask.dense(sequential(5), sequential(5))
    np.testing.assert_array_equal(mask.dense(part, part), wanted)
    traced = jax.jit(lambda t: mask.dense(t, t))(jax.tree.map(jnp.asarray, part))
    np.testing.assert_array_equal(traced, wanted)


def test_queries_before_and_after_all_keys_see_the_nearest_of_them():
    tokens = sequential(12)
    mask = spec.build("masks", "neighborhood(2)", "mask")
    found = mask.dense(tokens, tokens.cut(4, 8))
    assert [list(4 + np.flatnonzero(row)) for row in found] == (
        [[4, 5]] * 6 + [[5, 6]] + [[6, 7]] * 5  # the window of place i is i - 1 and i
    )


def test_a_query_beyond_all_keys_is_of_the_residue_of_the_nearest():
    tokens = sequential(12)
    found = spec.build("masks", "neighborhood(2, dilation=2)", "mask").dense(tokens.cut(6, 12), tokens.cut(0, 5))
    np.testing.assert_array_equal(found, [[0, 0, 1, 0, 1]] * 6)


def test_padding_counts_towards_the_ends_and_is_not_seen():
    tokens = sequential(5, valid=np.array([True, True, True, True, False]))
    found = spec.build("masks", "neighborhood(3)", "mask").dense(tokens, tokens)
    np.testing.assert_array_equal(found.sum(axis=1), [3, 3, 3, 2, 0])


def test_a_width_as_large_as_numbers_go_is_all():
    tokens = sequential(6)
    assert spec.build("masks", f"neighborhood({2**31 - 1})", "mask").dense(tokens, tokens).all()
    apart = spec.build("masks", f"neighborhood(2, {2**31 - 1})", "mask").dense(tokens, tokens)
    np.testing.assert_array_equal(apart, np.eye(6, dtype=bool))
