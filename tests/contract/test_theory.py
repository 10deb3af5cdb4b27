"""The theory protocol, over every registered theory: curves of the task of the same name, for what its rows may see."""

import dataclasses

import numpy as np
import pytest

from positionbias import spec
from positionbias.theory.base import Curves
from positionbias.theory.inverse_permutation import InversePermutationTheory

AXIS = "theory"
EXAMPLES = {"inverse_permutation": ["inverse_permutation(n=4)", "inverse_permutation(n=3, alphabet=5, scratch=True)"]}


def check_curves(theory):
    """Curves are probabilities, one a slot of the task, rise with what is seen, and agree on their mean."""
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
    assert before > 0, "nothing is known even where everything is seen"


def test_protocol(built):
    check_curves(built)


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
        check_curves(theory)


def test_a_theory_that_knows_nothing_is_caught():
    class Silent(InversePermutationTheory):
        def curves(self, visible) -> Curves | None:
            return None

    with pytest.raises(AssertionError):
        check_curves(Silent())
