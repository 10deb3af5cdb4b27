"""Masks of cross attention: which of the other side's tokens belong to which query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.spec import ConfigError
from positionbias.tokens import sequential


def dense(text, queries, keys, stored=0):
    """The mask between tokens stored from `stored` on and keys."""
    q = sequential(stored + queries).cut(stored, stored + queries)
    return np.asarray(spec.build("masks", text, "mask").dense(q, keys))


def framed(frames, a_frame=1):
    return sequential(frames * a_frame, frame=np.repeat(np.arange(1, frames + 1), a_frame))


@pytest.mark.parametrize("stored", [0, 5])
@pytest.mark.parametrize(("queries", "frames"), [(4, 4), (4, 8), (4, 6), (5, 3), (1, 4), (8, 1), (3, 96)])
def test_queries_see_their_share_of_time(queries, frames, stored):
    found = dense("causal_cross", queries, framed(frames, 2), stored)
    for n in range(queries):
        wanted = [f for f in range(1, frames + 1) if (f - 1) * queries < (n + 1) * frames]
        np.testing.assert_array_equal(found[n], np.isin(framed(frames, 2).frame, wanted))
    assert found[-1].all()


def test_the_first_query_sees_the_first_share_and_what_is_in_no_frame():
    keys = sequential(10, frame=np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0]))
    np.testing.assert_array_equal(dense("causal_cross", 4, keys)[0], [1, 1, 1, 0, 0, 0, 0, 0, 0, 1])
    assert dense("causal_cross", 3, sequential(4)).all(), "without frames everything is seen"


def test_every_sequence_of_a_batch_has_its_own_last_frame():
    frame = np.array([[1, 2, 3, 4], [1, 1, 2, 2]])
    mask = spec.build("masks", "causal_cross", "mask")
    found = mask.dense(sequential(2), sequential(4, frame=frame))
    np.testing.assert_array_equal(found[:, 0], [[1, 1, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(found[:, 1], np.ones((2, 4)))
    traced = jax.jit(lambda f: mask.dense(sequential(2), sequential(4, frame=f)))(jnp.asarray(frame))
    np.testing.assert_array_equal(traced, found)


def test_frames_too_far_to_be_compared_are_refused():
    with pytest.raises(ConfigError) as error:
        dense("causal_cross", 4, sequential(2, frame=np.array([1, 2**30], np.int32)))
    assert str(error.value) == ("causal_cross reads a frame of 1073741824; allowed: up to 429496729 with 4 queries.")
    near = dense("causal_cross", 4, sequential(2, frame=np.array([1, 429496729], np.int32)))
    np.testing.assert_array_equal(near, [[1, 0], [1, 0], [1, 0], [1, 1]])


@pytest.mark.parametrize("stored", [0, 8])
def test_a_query_sees_what_is_aligned_with_it(stored):
    np.testing.assert_array_equal(dense("aligned_cross", 3, sequential(4), stored), np.eye(3, 4))
    found = dense("aligned_cross(2)", 3, sequential(6), stored)
    np.testing.assert_array_equal(found, [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(dense("aligned_cross(2)", 2, sequential(9).cut(4, 7), stored), [[1, 1, 0], [0, 0, 1]])
