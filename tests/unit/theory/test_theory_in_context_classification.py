"""The plateau of label guessing against literal numbers, and against the items of its task."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from positionbias.spec import ConfigError
from positionbias.tasks.in_context_classification import InContextClassification
from positionbias.theory.base import Prediction
from positionbias.theory.in_context_classification import InContextClassificationTheory


def plateau(kinds, labels, assignment):
    return InContextClassificationTheory(3 * kinds, labels, 3, assignment).label_guessing()


def test_different_labels():
    assert plateau(2, 32, "balanced") == (0.5, pytest.approx(0.6931472))
    assert plateau(8, 32, "balanced") == (0.125, pytest.approx(2.0794415))


def test_independent_labels():
    assert plateau(2, 32, "uniform") == (0.515625, pytest.approx(31 / 32 * math.log(2)))


def test_independent_labels_enumerated():
    counts = [labels.count(labels[0]) / 3 for labels in itertools.product(range(2), repeat=3)]
    assert plateau(3, 2, "uniform") == pytest.approx((np.mean(counts), -np.mean(np.log(counts))))


def test_it_is_predicted_where_every_context_is_of_this_kind():
    theory, everything = InContextClassificationTheory(), np.ones((17, 17), bool)
    accuracy, loss = theory.predictions(everything)
    assert accuracy == Prediction("label_guessing", "accuracy", 0.515625)
    assert (loss.of, loss.value) == ("loss", pytest.approx(0.6714863))
    blind = everything.copy()
    blind[-1, 3] = False
    assert theory.predictions(blind) == ()
    for change in ({"p_bursty": 0.5}, {"zipf": 1.0}):
        assert dataclasses.replace(theory, **change).predictions(everything) == ()
    assert dataclasses.replace(theory, zipf=1.0, assignment="balanced").predictions(everything)
    with pytest.raises(ConfigError, match=r"allowed: \(17, 17\)"):
        theory.predictions(blind[1:, 1:])


@pytest.mark.parametrize("assignment", ["uniform", "balanced"])
def test_it_is_what_a_context_label_at_random_gets(assignment):
    task = InContextClassification(dimension=2, classes=8, labels=4, burstiness=2, assignment=assignment)
    condition = task.conditions()[2]
    sample = jax.jit(lambda key: task.batch(key, condition, 4000, task.world(key)).targets)
    targets = np.asarray(sample(jax.random.key(0)))
    share = (targets[:, :16:2] == targets[:, 16:]).mean(axis=1)
    accuracy, loss = plateau(4, 4, assignment)
    # Standard deviations of at most 0.18 and 0.42: four standard errors are 0.012 and 0.027.
    assert share.mean() == pytest.approx(accuracy, abs=0.012)
    assert -np.log(share).mean() == pytest.approx(loss, abs=0.027)
