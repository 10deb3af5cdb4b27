"""Masks of frames, scales, responses and passes: what they hide at any depth, and what they equal."""

import numpy as np
import pytest

from positionbias import spec
from positionbias.masks.base import reach
from positionbias.tokens import rings, sequential


def dense(text, tokens):
    return np.asarray(spec.build("masks", text, "mask").dense(tokens, tokens))


def test_concentric_rings_pass_inwards_only_and_text_stays_causal():
    side = 4
    image = side * side
    frame = np.array([0] + [1] * image + [0, 0])
    scale = np.concatenate([[0], rings(side), [0, 0]]).astype(np.int32)
    found = dense("concentric", sequential(len(frame), frame=frame, scale=scale))
    cells = slice(1, 1 + image)
    np.testing.assert_array_equal(found[cells, cells], rings(side)[None, :] <= rings(side)[:, None])
    deep = reach([found] * 5)
    np.testing.assert_array_equal(deep[cells, cells], found[cells, cells])
    assert not deep[:-2, -2:].any(), "no earlier token sees the text after the image"
    np.testing.assert_array_equal(found[-2:], [[1] * (image + 2) + [0], [1] * (image + 3)])


@pytest.mark.parametrize("text", ["block_causal", "frame_causal", "block_causal_with_summary(9)", "concentric"])
def test_no_later_frame_is_reached_at_any_depth(text):
    frame = np.repeat([1, 2, 3], 4)
    found = reach([dense(text, sequential(12, frame=frame))] * 4)
    np.testing.assert_array_equal(found, frame[None, :] <= frame[:, None])


def test_text_between_frames_is_causal_in_blocks_and_free_in_frames():
    frame = np.array([0, 0, 1, 1, 0])
    blocks, frames = (dense(text, sequential(5, frame=frame)) for text in ("block_causal", "frame_causal"))
    np.testing.assert_array_equal(blocks[[0, 4]], [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(frames[[0, 4]], [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1]])


def test_a_summary_is_out_of_reach_of_all_others():
    frame, role = np.array([1, 1, 0, 2, 2, 0]), np.array([0, 0, 7, 0, 0, 7])
    found = reach([dense("block_causal_with_summary(7)", sequential(6, frame=frame, role=role))] * 3)
    assert found[role == 7].all()
    assert not found[np.ix_(role != 7, role == 7)].any()


FRAMED = ["block_causal", "block_causal_with_summary(3)", "frame_causal", "concentric", "causal_cross"]


@pytest.mark.parametrize(
    ("text", "usual", "group"),
    [*((text, "frame", "segment") for text in FRAMED), *(("scale_causal", "scale", g) for g in ("segment", "frame"))],
)
def test_another_field_may_stand_for_frames(text, usual, group):
    """The mask of a field is that of the usual one with the same numbers in it."""
    numbers, role = np.array([0, 1, 1, 2, 0, 3, 3]), np.array([3, 0, 0, 0, 0, 0, 0])
    named = f"{text[:-1]}, group='{group}')" if text.endswith(")") else f"{text}(group='{group}')"
    found = dense(named, sequential(7, role=role, **{group: numbers}))
    np.testing.assert_array_equal(found, dense(text, sequential(7, role=role, **{usual: numbers})))
    assert (dense(text, sequential(7, role=role, **{group: numbers})) != found).any()


def test_documents_of_a_task_may_stand_for_frames():
    """The lists of a task: their tokens see their own list whole, and those before it."""
    task = spec.build("tasks", "rebinding", "task")
    tokens = task.tokens(task.conditions()[0])
    assert len(set(tokens.segment)) > 1
    found = dense("block_causal('segment')", tokens)
    one = tokens.segment == max(tokens.segment)
    assert found[np.ix_(one, one)].all()
    assert not found[np.ix_(~one, one)][: np.flatnonzero(one)[0]].any()


def test_responses_to_a_shared_prompt_are_as_if_each_were_alone():
    segment = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    found = dense("shared_prompt", sequential(9, segment=segment))
    for response in (1, 2, 3):
        rows = np.flatnonzero((segment == 0) | (segment == response))
        alone = dense("causal", sequential(len(rows)))
        np.testing.assert_array_equal(found[np.ix_(rows, rows)], alone)
        others = np.flatnonzero((segment != 0) & (segment != response))
        assert not reach([found] * 4)[np.ix_(rows, others)].any()


def test_passes_may_be_laid_out_in_any_order_and_one_pass_is_causal():
    index, depth = np.tile(np.arange(4), 2), np.repeat([0, 1], 4)
    found = dense("depth_causal", sequential(8, index=index, depth=depth))
    order = np.array([4, 0, 5, 1, 6, 2, 7, 3])  # the two passes of each token side by side
    again = dense("depth_causal", sequential(8, index=index[order], depth=depth[order]))
    np.testing.assert_array_equal(again, found[np.ix_(order, order)])
    np.testing.assert_array_equal(found[:4, :4], dense("causal", sequential(4)))
    assert not reach([found] * 3)[:4, 4:].any(), "an earlier pass never reads a later one"
