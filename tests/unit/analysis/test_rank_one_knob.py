"""The knob of a planted boolean turns answers, also where nothing tells which side is meant."""

import jax
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.rank_one_knob import STRENGTHS, RankOneKnob
from positionbias.errors import ConfigError


def test_the_knob_turns_what_a_planted_boolean_decides(planted):
    knob = RankOneKnob(updates=100, batch=64, rate=3e-2)
    found = jax.jit(lambda: knob.measure(planted, [0, 1], jax.random.key(0)))()
    whole = STRENGTHS.index(1.0)
    assert found["turned"][0, whole] > 0.98
    assert found["untold"][0, whole] > 0.98
    assert found["turned"][1, whole] < 0.7, "the answer is settled, of which one direction holds next to none"
    assert float(found["random"][0, whole]) == pytest.approx(0.5, abs=0.1)
    assert found["whole"].tolist() == [1.0, 1.0]
    assert float(found["nothing"]) == pytest.approx(0.5, abs=0.07)
    assert float(found["untold_nothing"]) < 0.7


def test_a_condition_without_another_side_is_refused(planted):
    message = (
        "variable = 'condition' needs two conditions of the same items, and 'train' .* allowed: --condition use or"
    )
    with pytest.raises(ConfigError, match=message):
        RankOneKnob().layers(Subject(planted.run, planted.run.task.conditions()[0], 8))
