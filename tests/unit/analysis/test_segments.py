"""Which rows are of which segment, which of them an answer needs, and how attention to them is changed."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.analysis.base import Subject
from positionbias.analysis.segments import (
    asked,
    check_items,
    check_segments,
    columns_at,
    correlation,
    count,
    evidence_rows,
    gold,
    parts,
    reweighted,
)
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites
from positionbias.tasks.base import Batch, world_of
from positionbias.tokens import sequential


def asking(text, items=2):
    task = spec.build("tasks", text, "task")
    subject = Subject(types.SimpleNamespace(task=task), task.conditions()[0], items)
    batch = jax.jit(lambda key: task.batch(key, subject.condition, items, world_of(task, key)))(jax.random.key(0))
    return subject, batch


def lying(segment, evidence):
    """A task whose items have these segments, and one item whose answers need this."""
    task = types.SimpleNamespace(segments=lambda _: max(segment))
    nothing = dict.fromkeys(Batch._fields)
    told = {
        "tokens": sequential(len(segment), segment=np.array(segment, np.int32)),
        "evidence": jnp.array([evidence]),
        "query": jnp.zeros((1, len(evidence)), jnp.int32),
        "weights": jnp.zeros((1, len(segment))),
    }
    return Subject(types.SimpleNamespace(task=task), None, 1), Batch(**{**nothing, **told})


def test_parts_are_the_segments_and_the_question_behind_them():
    """Filler in front of pairs is of no part, and the rows that ask are one."""
    subject, batch = asking("associative_recall(pairs=3, keys=4, values=4, delays=2, padding=2)")
    assert count(subject) == 3
    found = np.asarray(parts(subject, batch))
    assert found.shape == (2, 10, 4)
    assert [int(row.argmax()) if row.any() else None for row in found[0]] == [None, None, 0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(found.sum(axis=-1), [[0, 0] + [1] * 8] * 2)


def test_what_is_hidden_is_of_no_part():
    """`set_disjointness` pads in front, and lays every item out anew."""
    subject, batch = asking("set_disjointness", items=4)
    found, valid = np.asarray(parts(subject, batch)), np.asarray(batch.tokens.valid)
    np.testing.assert_array_equal(found.sum(axis=-1) > 0, valid)
    np.testing.assert_array_equal(found[:, -1, -1], 1)


def test_padding_is_of_no_part_wherever_it_stands():
    subject, batch = lying([1, 1, 2, 2, 0, 0], [[0]])
    hidden = batch.tokens._replace(valid=np.array([True, False, True, True, False, True]))
    found = np.asarray(parts(subject, batch._replace(tokens=hidden)))[0]
    assert [int(row.argmax()) if row.any() else None for row in found] == [0, None, 1, 1, None, 2]


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("inverse_permutation(n=10, alphabet=12)", np.array([0, 0, 1, 2, 3, 4, 4, 5, 6, 7])),
        ("inverse_permutation(n=2, alphabet=2)", np.arange(2)),
    ],
)
def test_a_task_without_segments_is_cut_into_equal_blocks_of_its_context(text, blocks):
    subject, batch = asking(text)
    assert int(np.max(batch.tokens.segment)) == 0
    context = subject.run.task.context_length(subject.condition)
    assert count(subject) == blocks[:context].max() + 1
    found = np.asarray(parts(subject, batch))[0]
    np.testing.assert_array_equal(found[:context].argmax(-1), blocks[:context])
    np.testing.assert_array_equal(found[context:].argmax(-1), blocks[:context].max() + 1)


def test_a_task_whose_answers_are_everywhere_is_cut_as_a_whole():
    subject, batch = lying([0] * 6, [[0]])
    subject.run.task.__dict__.update(segments=lambda _: 0, length=lambda _: 6, context_length=lambda _: 0)
    assert np.asarray(parts(subject, batch))[0].argmax(-1).tolist() == [0, 1, 2, 3, 4, 5]


def test_gold_segments_hold_evidence_and_the_others_are_as_many_that_hold_none():
    segment = [0, 1, 1, 2, 2, 2, 3, 4, 4, 0]
    subject, batch = lying(segment, [[1, -1], [2, 3], [0, 7], [-1, -1]])
    mine, other = (np.asarray(x)[0] for x in gold(subject, batch))

    def rows(of):
        return [np.flatnonzero(x).tolist() for x in of]

    assert rows(mine) == [[1, 2], [1, 2, 3, 4, 5], [0, 7, 8], []]
    assert rows(other) == [[3, 4, 5], [6, 7, 8], [1, 2], []]
    assert rows(np.asarray(evidence_rows(batch))[0]) == [[1], [2, 3], [0, 7], []]


def test_where_all_segments_are_needed_there_are_no_others():
    subject, batch = lying([1, 2, 2, 0], [[0, 1]])
    assert np.asarray(gold(subject, batch)[0])[0, 0].tolist() == [True, True, True, False]
    assert not np.asarray(gold(subject, batch)[1]).any()


def test_the_rows_that_answer_are_read_and_changed():
    random = np.random.default_rng(0)
    pattern = random.uniform(size=(2, 3, 2, 4, 4)).astype(np.float32)  # [L, B, N, T, T]
    rows = np.array([[0, 2], [3, 1], [2, 2]])
    found = np.asarray(asked(jnp.asarray(pattern), jnp.asarray(rows)))
    for item in range(3):
        np.testing.assert_array_equal(found[:, item], pattern[:, item][:, :, rows[item]])
    needed = random.uniform(size=(3, 2, 4)) > 0.5
    expected = np.zeros((3, 4, 4), bool)
    for item in range(3):
        for answer, row in enumerate(rows[item]):
            expected[item, row] |= needed[item, answer]
    found = columns_at(jnp.asarray(rows), jnp.asarray(needed))
    np.testing.assert_array_equal(found, expected)

    change = reweighted(found, 0.5, heads=jnp.array([False, True]))
    after = np.asarray(Sites(edit={"a.pattern": change})("a.pattern", jnp.asarray(pattern[0])))
    by_hand = np.where(expected[:, None], 0.5, 1.0) * pattern[0]
    by_hand *= pattern[0].sum(-1, keepdims=True) / by_hand.sum(-1, keepdims=True)
    np.testing.assert_array_equal(after[:, 0], pattern[0][:, 0])
    np.testing.assert_allclose(after[:, 1], by_hand[:, 1], rtol=1e-5)


def test_a_row_without_other_columns_is_left_nothing():
    change = reweighted(jnp.array([[[True, False]]]), 0.0)
    assert np.asarray(change.of("a.pattern", jnp.array([[[[1.0, 0.0]]]]))).tolist() == [[[[0.0, 0.0]]]]


def test_correlation_is_pearsons_and_0_where_nothing_varies():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, 2, 3)), random.normal(size=20)
    x[:, 0, 0] = 0.3 + 1e-7 * random.normal(size=20)
    found = np.asarray(correlation(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))
    expected = np.array([[np.corrcoef(x[:, i, j], y)[0, 1] for j in range(3)] for i in range(2)])
    expected[0, 0] = 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(correlation(jnp.asarray(x[:, 1, 1]), jnp.ones(20))) == 0


def test_one_item_or_one_segment_is_refused():
    subject, _ = asking("associative_recall(pairs=1, keys=4, values=4, delays=2)", items=1)
    with pytest.raises(ConfigError, match="items = 1 is not allowed; allowed: 2 or more"):
        check_items(subject)
    rule = spec.build("analyses", "segment_attention", "analyses")
    with pytest.raises(
        ConfigError, match=r"compares segments, of which the task associative_recall.* has 1 in condition train"
    ):
        check_segments(subject, rule)
