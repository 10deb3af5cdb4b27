"""What goes from one item to another, and what is right then, read off the items themselves."""

import jax
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.variables import pairs
from positionbias.tasks.context_or_prior import IGNORE
from positionbias.tasks.set_disjointness import SECOND_ROLE

NAMES, COUNT = ["layers.0.stream"], 64


@pytest.fixture(scope="module")
def lists(drawn_run):
    raw = {
        "name": "lists",
        "task": "set_disjointness(train=[[2, 4], [3, 5]], test=[], vocabulary=16)",
        "model": {"layers": 1, "width": 4, "heads": 1},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 8)


def told_of(subject, variable):
    return telling(subject, variable, COUNT)(0)


def telling(subject, variable, count):
    """What is told of a seed, by one program."""
    program = jax.jit(lambda key: pairs(subject, NAMES, variable, key, count))
    return lambda seed: jax.tree.map(np.asarray, program(jax.random.key(seed)))


def test_evidence_and_another_row_of_its_list_change_places(lists):
    found = told_of(lists, "evidence")
    _, clean = lists.apply(found.base, NAMES)
    stream = np.asarray(clean[NAMES[0]])
    for i in range(COUNT):
        at, other = found.rows[i]
        inputs, role = found.base.inputs[i], found.base.tokens.role[i]
        assert role[at] == role[other] == SECOND_ROLE
        assert at == found.base.evidence[i, 0, -1] != other
        assert inputs[at] == found.was[i] == found.base.targets[i, -1]
        assert inputs[other] == found.told[i] != found.was[i]
        assert found.mixed[i] in set(inputs[role == SECOND_ROLE]) - {found.was[i], found.told[i]}
        np.testing.assert_allclose(found.held[0, i, [at, other]], stream[i, [other, at]], atol=1e-5)
    assert (found.before == [1, 0]).all()
    assert (found.after == [0, 1]).all()


def test_an_answer_comes_with_the_stream_of_its_own_item(lists):
    found = told_of(lists, "answer")
    assert (found.was == found.base.targets[:, -1]).all()
    assert (found.mixed != found.told).mean() > 0.5
    assert (found.rows[:, 0] == found.base.inputs.shape[1] - 1).all()
    assert found.held.shape == (1, COUNT, 1, 4)


def test_a_condition_comes_with_an_item_of_either_side_and_the_base_keeps_its_own(planted):
    """The planted stream shows the source's intent along its direction; both answers can be read off the base."""
    found = told_of(planted, "condition")
    facts = np.asarray(planted.run.task._objects)[found.base.inputs[:, -1] - 2, 0] + planted.run.task._first_object
    documents = found.base.inputs[:, 2]
    side, sent = found.before[:, 0], found.after[:, 0]
    assert (found.base.inputs[:, -3] == np.where(side, IGNORE, 1 - IGNORE)).all()
    assert (found.was == np.where(side, facts, documents)).all()
    assert (found.told == np.where(sent, facts, documents)).all()
    along = found.held[0, :, 0] @ np.asarray(planted.rotation[0])
    np.testing.assert_allclose(along, 2 * sent - 1, atol=1e-5)
    changed = found.mixed != found.told
    assert 0.3 < changed.mean() < 0.7
    assert {(int(x), int(y)) for x, y in zip(side, sent, strict=True)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_the_label_of_a_single_pair_is_shuffled_too(lists, planted):
    """As pairs are drawn by the piece, which may be of one: dealt among its own it would keep the right label."""
    for subject, variable in ((lists, "answer"), (planted, "condition")):
        found = list(map(telling(subject, variable, 1), range(8)))
        assert any(one.mixed != one.told for one in found), variable
