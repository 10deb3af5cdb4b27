"""The theory protocol, over every registered theory: curves and predictions of the task of the same name."""

import dataclasses
import math

import numpy as np
import pytest

from positionbias import spec
from positionbias.theory.base import Prediction, Theory
from positionbias.theory.inverse_permutation import InversePermutationTheory

AXIS = "theory"
EXAMPLES = {
    "inverse_permutation": ["inverse_permutation(n=4)", "inverse_permutation(n=3, alphabet=5, scratch=2)"],
    "factual_recall": ["factual_recall", "factual_recall(noise=0)"],
}


def check(theory):
    """Curves are probabilities, one a slot of the task, rise with what is seen, and agree on their mean.

    Predictions are each of one thing, and of a condition that there is.
    """
    task = spec.build("tasks", spec.canonical(theory), "task")
    condition = task.conditions()[0]
    tokens, before = task.tokens(condition), 0.0
    for text in ("causal & sliding_window(width=1)", "causal", "bidirectional"):
        curves = theory.curves(spec.build("masks", text, "mask").dense(tokens, tokens))
        if curves is None:
            continue
        for axis, share in task.prior(condition).items():
            curve = getattr(curves, axis)
            assert curve.shape == (len(share),), "one number a slot"
            assert curve.min() >= 0
            assert curve.max() <= 1
            np.testing.assert_allclose((curve * share).sum(), curves.mean, rtol=1e-12)
        assert curves.mean >= before, "seeing more cannot hurt"
        before = curves.mean
    everything = np.ones((task.length(condition),) * 2, bool)
    predictions = theory.predictions(everything)
    assert before > 0 or predictions, "nothing is known even where everything is seen"
    assert len({(one.name, one.of, one.condition) for one in predictions}) == len(predictions)
    for one in predictions:
        assert one.condition in {"", *(c.name for c in task.conditions())}
        assert 0 <= one.value <= {"accuracy": 1}.get(one.of, math.inf)


def test_protocol(built):
    check(built)


def test_text_round_trips(built):
    assert spec.build("theory", spec.canonical(built), "theory") == built


def told(**changes):
    """A theory whose curves are changed by `changes`, functions of the right ones."""

    class Broken(InversePermutationTheory):
        def curves(self, visible):
            right = super().curves(visible)
            return right and dataclasses.replace(right, **{k: change(right) for k, change in changes.items()})

    return Broken()


BROKEN = [
    told(query=lambda right: right.query[1:]),
    told(query=lambda right: right.query + 0.5),
    told(mean=lambda right: right.mean / 2),
    told(query=lambda right: 2 - right.query, evidence=lambda right: 2 - right.evidence),
]


@pytest.mark.parametrize("theory", BROKEN, ids=["too short", "above one", "another mean", "backwards"])
def test_a_broken_theory_is_caught(theory):
    with pytest.raises(AssertionError):
        check(theory)


def test_a_theory_that_knows_nothing_is_caught():
    class Silent(InversePermutationTheory):
        curves = Theory.curves

    with pytest.raises(AssertionError):
        check(Silent())


@pytest.mark.parametrize(
    "wrong",
    [
        (Prediction("rule", "accuracy", 1.1),),
        (Prediction("rule", "loss", math.nan),),
        (Prediction("rule", "loss", 1.0, condition="nowhere"),),
        (Prediction("rule", "loss", 1.0), Prediction("rule", "loss", 2.0)),
    ],
    ids=["above one", "no number", "no condition", "twice"],
)
def test_a_broken_prediction_is_caught(wrong):
    class Broken(InversePermutationTheory):
        def predictions(self, visible):
            return wrong

    with pytest.raises(AssertionError):
        check(Broken())
