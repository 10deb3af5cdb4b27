"""The plateau of label guessing against literal numbers, and against the items of its task."""

import itertools
import math

import jax
import numpy as np
import pytest

from positionbias.tasks.in_context_classification import InContextClassification
from positionbias.theory.label_guessing import label_guessing


def test_different_labels():
    assert label_guessing(2, 32, True).accuracy == 0.5
    assert label_guessing(2, 32, True).loss == pytest.approx(0.6931472)
    assert label_guessing(8, 32, True).accuracy == 0.125
    assert label_guessing(8, 32, True).loss == pytest.approx(2.0794415)


def test_independent_labels():
    plateau = label_guessing(2, 32, False)
    assert plateau.accuracy == 0.515625
    assert plateau.loss == pytest.approx(31 / 32 * math.log(2))


def test_independent_labels_enumerated():
    plateau = label_guessing(3, 2, False)
    counts = [labels.count(labels[0]) / 3 for labels in itertools.product(range(2), repeat=3)]
    assert plateau.accuracy == pytest.approx(np.mean(counts))
    assert plateau.loss == pytest.approx(-np.mean(np.log(counts)))


@pytest.mark.parametrize("assignment", ["uniform", "balanced"])
def test_it_is_what_a_context_label_at_random_gets(assignment):
    task = InContextClassification(dimension=2, classes=8, labels=4, burstiness=2, assignment=assignment)
    condition = task.conditions()[2]
    sample = jax.jit(lambda key: task.batch(key, condition, 4000, task.world(key)).targets)
    targets = np.asarray(sample(jax.random.key(0)))
    share = (targets[:, :16:2] == targets[:, 16:]).mean(axis=1)
    plateau = label_guessing(4, 4, assignment == "balanced")
    # Standard deviations of at most 0.18 and 0.42: four standard errors are 0.012 and 0.027.
    assert share.mean() == pytest.approx(plateau.accuracy, abs=0.012)
    assert -np.log(share).mean() == pytest.approx(plateau.loss, abs=0.027)
