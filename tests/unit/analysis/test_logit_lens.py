"""The lens against models whose later layers add nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.logit_lens import LogitLens
from positionbias.models import edits


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "lens",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
        "model": {"layers": 3, "width": 8, "heads": 1},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 64)


def test_a_layer_is_read_as_if_it_were_the_last(subject):
    key = jax.random.key(0)
    found = jax.jit(lambda: LogitLens().measure(subject, [0, 1, 2], key))()
    batch = subject.batch(key)
    for layer in range(3):
        nothing = {
            f"layers.{later}.{part}.output": edits.zero()
            for later in range(layer + 1, 3)
            for part in ("attention", "mlp")
        }
        known = jax.jit(lambda edit=nothing: subject.accuracy(batch, edit))()
        for name in ("accuracy", "log_probability"):
            assert float(found[name][layer]) == pytest.approx(float(known[name]), abs=1e-5)
    assert found["agrees"][2] == 1
    assert len(set(np.asarray(found["log_probability"]).tolist())) == 3


def test_an_answer_is_settled_behind_the_layer_from_which_on_it_stays(subject):
    """Told by what the model says where its last two layers, its last one, and none of them add nothing."""
    run, key = subject.run, jax.random.key(0)
    outputs = [
        run.apply(subject.batch(key), edit={f"layers.{later}.*.output": edits.zero() for later in after})[0]
        for after in ((1, 2), (2,), ())
    ]
    rows = run.answer_rows(subject.batch(key))[:, 0]
    said = np.stack([np.asarray(x)[np.arange(64), rows].argmax(-1) for x in outputs])
    stays = [1 if (one == one[2]).all() else 2 if one[1] == one[2] else 3 for one in said.T]
    found = LogitLens().measure(dataclasses.replace(subject), [0, 1, 2], key)
    assert float(found["commitment"]) == pytest.approx(np.mean(stays))
    assert 1 < np.mean(stays) < 3
