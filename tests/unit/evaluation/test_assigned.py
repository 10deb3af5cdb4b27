"""Evaluating under an assignment of positions: what the model is told, and what interventions make of it."""

import dataclasses

import jax
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.evaluation.by_position import Evaluator
from positionbias.replicas import Layout, replica_keys
from positionbias.training.auto import Auto
from positionbias.training.program import Program

pytestmark = pytest.mark.usefixtures("no_influence")

TASK = {"task": "associative_recall(pairs=3, keys=4, values=8)", "model.position": "sinusoidal", "model.heads": 2}


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def measured(tiny, kept):
    """`measured(assignment, intervention)`: the rows of one fresh model, the same whatever it is told."""
    experiment = build(tiny({**TASK, "train.replicas": 1, "evaluation.items": 24, "evaluation.batch_size": 8}))
    program = Program(experiment, Auto(Layout("loop"), 8, 1))
    weights = jax.jit(jax.vmap(program.fresh))(program.replicas())

    def once(*how):
        if how not in kept:
            kept[how] = rows(*how)
        return kept[how]

    def rows(assignment, intervention=None, batch_size=8):
        told = spec.build("assignments", assignment, "assignment")
        config = dataclasses.replace(
            experiment.config, evaluation=dataclasses.replace(experiment.config.evaluation, batch_size=batch_size)
        )
        here = dataclasses.replace(experiment, assignment=told, config=config)
        change = spec.build("interventions", intervention, "intervention") if intervention else None
        return Evaluator(here, Layout("loop"), replica_keys(0, 1), intervention=change).rows(weights)

    return once


def said(rows):
    return rows["log_probability"]


def test_padding_that_is_told_is_a_shift(measured):
    plain, moved = measured("sequential"), measured("padded(2)")
    assert np.abs(said(plain) - said(moved)).max() > 1e-4
    np.testing.assert_allclose(said(moved), said(measured("sequential", "shift(by=2)")), atol=1e-5)
    together = measured("padded(2)", "shift(by=3)")
    np.testing.assert_allclose(said(together), said(measured("sequential", "shift(by=5)")), atol=1e-5)


def test_positions_are_assigned_anew_where_contents_move(measured):
    """One layer cannot tell segments that are told alike apart by their order, and can by any other count."""
    np.testing.assert_allclose(said(measured("shared")), said(measured("shared", "swap(0, 1)")), atol=1e-5)
    assert np.abs(said(measured("sequential")) - said(measured("sequential", "swap(0, 1)"))).max() > 1e-4


def test_what_is_drawn_does_not_depend_on_how_many_are_measured(measured):
    one, other = measured("randomized(longest=40)"), measured("randomized(longest=40)", None, 24)
    np.testing.assert_allclose(said(one), said(other), atol=1e-5)
    assert np.abs(said(one) - said(measured("sequential"))).max() > 1e-4
    shifted = measured("randomized(longest=40)", "shift(by=1)")
    assert np.abs(said(one) - said(shifted)).max() > 1e-6
    np.testing.assert_array_equal(one["ceiling"], other["ceiling"])
