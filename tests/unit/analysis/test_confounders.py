"""Confounders against a distractor that one hand-made model answers by and the other never looks at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.confounders import Confounders, auc, lowest, scaled, scores
from positionbias.errors import ConfigError
from positionbias.evaluation.loading import load

VALUES, PLANTED, SIZE = range(5, 9), 4, 9
KEY = jax.random.key(0)


def test_scores_are_scaled_over_the_places_that_count():
    of = jnp.array([[True, True, True, False], [True, True, False, False], [False] * 4])
    x = jnp.array([[1.0, 3.0, 2.0, 9.0], [5.0, 5.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_allclose(scaled(x, of), [[0, 1, 0.5, 0], [0] * 4, [0] * 4])


def test_a_pair_is_won_by_the_higher_score_and_a_tie_is_half_of_it():
    one = jnp.array([[True, True, False, False], [False] * 4])
    other = jnp.array([[False, False, True, True], [True] * 4])
    np.testing.assert_allclose(auc(jnp.array([[3.0, 1.0, 1.0, 2.0]] * 2), one, other), [(2 + 0.5) / 4, 0.5])


def test_the_lowest_share_is_one_place_at_least_and_none_above_the_middle():
    x = jnp.array([[0.4, 0.0, 0.3, 0.1, 0.9, 1.0]])
    of = jnp.array([[True, True, True, False, True, True]])
    assert lowest(x, of, 0.1).tolist() == [[False, True, False, False, False, False]]
    assert lowest(x, of, 0.4).tolist() == [[False, True, True, False, False, False]]
    assert not lowest(x + 0.6, of, 0.1).any()
    assert not lowest(x, jnp.zeros_like(of), 0.5).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, unmeasured_run):
    raw = {
        "name": "confounded",
        "task": "associative_recall(pairs=1, keys=4, values=4, delays=6, padding=1, shift=0)",
        "model": {
            "layers": 1,
            "width": SIZE,
            "heads": 1,
            "head_size": SIZE,
            "position": "none",
            "inputs": "one_hot",
            "norm": "none",
            "mlp": False,
        },
        "train": {"steps": 4, "batch_size": 2, "replicas": 2, "log_every": 1},
        "checkpoint": {"every": 2},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    }
    return unmeasured_run(raw, tmp_path_factory.mktemp("run"))


def by_hand(weights, pull):
    """A model that attends to each row as much, but to the planted one by `pull`, and says the value, or its query."""
    hot, eye = np.arange(SIZE) == PLANTED, np.eye(SIZE)
    made = {
        "query": np.tile(eye[0], (SIZE, 1)),
        "key": pull * np.outer(hot, eye[0]),
        "value": eye,
        "output": 50 * np.diag(np.isin(np.arange(SIZE), VALUES)),
        "readout": eye,
    }

    def one(path, x):
        names = [getattr(entry, "key", entry) for entry in path]
        (kind,) = [name for name in made if name in names]
        return jnp.asarray(made[kind], x.dtype).reshape(x.shape)

    return jax.tree_util.tree_map_with_path(one, weights)


class Planted(Subject):
    """Items with a token in front that stands nowhere else, and means nothing."""

    def batch(self, key, items=None):
        batch = super().batch(key, items)
        others = jnp.where(batch.inputs == PLANTED, PLANTED - 1, batch.inputs)
        return batch._replace(inputs=others.at[:, 0].set(PLANTED))


@pytest.fixture(scope="module")
def subjects(folder):
    run = load(folder)
    teacher, student = (dataclasses.replace(run, weights=by_hand(run.weights, pull)) for pull in (-60.0, 60.0))
    condition = run.task.conditions()[0]
    return Planted(teacher, condition, 32, student.weights), Planted(student, condition, 32)


def test_a_planted_distractor_is_the_confounder_and_without_it_the_student_is_right(subjects):
    teacher, student = subjects
    found = jax.device_get(jax.jit(lambda: Confounders().measure(teacher, [0], KEY))())
    assert found["counted"] == 1
    np.testing.assert_allclose(found["confounders"], np.eye(9)[0])
    assert found["student"][0] == pytest.approx(1)
    assert found["teacher"][0] == found["difference"][0] == 0
    assert (found["mended"], found["mended_random"]) == (1, 0)
    batch = teacher.batch(KEY)
    told = jax.jit(lambda: scores(teacher, student, teacher.batch(KEY)))()
    planted = jnp.zeros_like(told["of"]).at[:, 0].set(True)
    rest = told["of"] & ~planted
    np.testing.assert_allclose(auc(-told["difference"], planted, rest), 1)
    np.testing.assert_allclose(auc(-told["student"], planted, rest), 0)
    rows = np.asarray(student.run.answer_rows(batch))[:, 0]
    assert (np.asarray(told["of"]) == (np.arange(9) < rows[:, None])).all(), "what the row that answers can see"


def test_where_the_student_is_no_worse_no_item_counts(subjects):
    teacher, _ = subjects
    same = dataclasses.replace(teacher, given=teacher.run.weights)
    found = jax.device_get(jax.jit(lambda: Confounders().measure(same, [0], KEY))())
    assert all(not np.any(x) for x in found.values())


def test_the_student_is_the_replica_as_it_was_at_the_step(folder):
    run = load(folder, replica="all")

    def equal(one, other):
        return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), one, other)))

    assert equal(Confounders().given(run), run.untrained())
    assert equal(Confounders(student=2).given(run), load(folder, step=2, replica="all").weights)
    assert not equal(Confounders(student=2).given(run), run.untrained())
    first = load(folder, replica=1)
    assert equal(Confounders(student=2).given(first), load(folder, step=2, replica=1).weights)
    with pytest.raises(ConfigError, match=r"confounders\(student=4\) has student = 4, .* is asked, 4; allowed"):
        Confounders(student=4).given(run)
    with pytest.raises(ConfigError, match=r"confounders\(student=1\) reads a checkpoint: step: .*allowed in .*: 2, 4"):
        Confounders(student=1).given(run)


def test_models_as_drawn_are_their_own_students(drawn_run):
    raw = {"name": "drawn", "task": "associative_recall(pairs=2)", "model": {"layers": 1, "width": 4, "heads": 1}}
    run = drawn_run(raw)
    assert run.step == 0
    jax.tree.map(np.testing.assert_array_equal, Confounders().given(run), run.weights)
    with pytest.raises(ConfigError, match=r"has student = 1, .* is asked, 0; allowed"):
        Confounders(student=1).given(run)
