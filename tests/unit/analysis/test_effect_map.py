"""The map against every pair of prompts by itself."""

import jax
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.effect_map import EffectMap

ITEMS = 5


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "mapped",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2, shift=1)",
        "model": {"layers": 1, "width": 8, "heads": 1, "mask": "causal & sliding_window(3)"},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[1], ITEMS)  # a filler in front, which no item has another in place of


def test_each_number_is_the_mean_over_items_whose_inputs_differ(subject):
    key = jax.random.key(0)
    found = {name: np.asarray(x) for name, x in jax.jit(lambda: EffectMap().measure(subject, [0], key))().items()}
    batch = subject.batch(key)
    inputs, length = np.asarray(batch.inputs), batch.inputs.shape[1]

    def odds(one):
        logits = np.asarray(subject.apply(batch._replace(inputs=one))[0], np.float64)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    before, effect = odds(inputs), np.zeros((length, length))
    for column in range(length):
        other = inputs.copy()
        other[:, column] = np.roll(inputs[:, column], -1)
        differ = (other != inputs).any(axis=1)
        assert found["changed"][column] == pytest.approx(differ.mean())
        if differ.any():
            apart = (np.exp(before) * (before - odds(other))).sum(-1)  # [B, T]
            effect[:, column] = apart[differ].mean(axis=0)
            rows = np.asarray(subject.run.answer_rows(batch))[:, 0]
            answers = apart[np.arange(ITEMS), rows][differ].mean()
            assert found["answers"][column] == pytest.approx(answers, rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(found["effect"], effect, rtol=1e-3, atol=1e-6)
    assert found["changed"][0] == 0 == found["effect"][:, 0].max(), "no item has another token in front"
    row, column = np.indices(effect.shape)
    unseen = (column > row) | (column < row - 2)
    np.testing.assert_allclose(found["effect"][unseen], 0, atol=1e-7)
    assert (found["effect"][~unseen & (column > 0)] > 0).mean() > 0.9
