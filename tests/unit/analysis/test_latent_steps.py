"""Steps that are another item's, against models called on what is exchanged by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.latent_steps import LatentSteps, _unneeded
from positionbias.errors import ConfigError
from positionbias.models import edits

ITEMS, CONTEXT, STEPS = 32, 15, 3


@pytest.fixture(scope="module")
def subject(drawn_run):
    """Chains of three names, each of which is read where the next one is said."""
    raw = {
        "name": "steps",
        "task": "variable_tracking(hops=2, chains=1, names=4, values=4, fillers=6)",
        "model": {"layers": 2, "width": 8, "heads": 1, "init": {"readout": "fan_in(scale=3.0)"}},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[2], ITEMS)


def test_every_number_is_that_of_rows_exchanged_by_hand(subject):
    key = jax.random.key(0)
    found = {k: np.asarray(x) for k, x in jax.jit(lambda: LatentSteps().measure(subject, [0, 1], key))().items()}
    drawn, picked = jax.random.split(key)
    batch = subject.batch(drawn)
    following = jax.tree.map(lambda x: np.roll(x, -1, axis=0) if x.ndim > 1 else x, batch)
    sites = ["embedding", "layers.0.stream", "layers.1.stream"]
    _, other = subject.apply(following, sites)
    each, rows = np.arange(ITEMS)[:, None], np.asarray(subject.run.answer_rows(batch))
    np.testing.assert_array_equal(rows, [[15, 16, 17]] * ITEMS)

    @jax.jit  # one program for all that is exchanged; row -1 is none
    def applied(inputs, row_of):
        edit = {name: edits.replace(other[name], rows=row_of[name][:, None]) for name in sites}
        outputs = subject.apply(batch._replace(inputs=inputs), (), edit)[0]
        return outputs, subject.answers(outputs, batch)["log_probability"]

    def told(names, row, inputs=batch.inputs):
        row_of = {name: np.array(np.broadcast_to(row if name in names else -1, ITEMS), np.int32) for name in sites}
        outputs, log = applied(inputs, row_of)
        return np.asarray(outputs)[each, rows].argmax(-1), np.asarray(log)

    said, intact = told([], -1)
    for step in range(STEPS):
        row = CONTEXT + step
        says, log = told(sites, row)
        np.testing.assert_allclose(found["changed"][step], (says != said).mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(found["effect"][step], (intact - log).mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(says[:, step], np.roll(said, -1, axis=0)[:, step], "it says what the other does")
        inputs = np.asarray(batch.inputs).copy()
        inputs[:, row] = following.inputs[:, row]
        says, _ = told([], -1, inputs)
        np.testing.assert_allclose(found["token"][step], (says != said).mean(axis=0), atol=1e-6)
        for layer in range(2):
            says, _ = told([sites[1 + layer]], row)
            differ = np.delete((says != said).mean(axis=0), step).mean()
            assert found["by_layer"][layer, step] == pytest.approx(differ, abs=1e-6)
    assert (found["changed"][np.triu_indices(STEPS)] > 0).all()
    assert (found["changed"][np.tril_indices(STEPS, -1)] == 0).all(), "no row sees a later one"
    assert (found["by_layer"][1] == 0).all(), "no row reads what stands behind the last layer"
    free = np.asarray(_unneeded(batch, CONTEXT, picked))
    says, _ = told(sites, free)
    np.testing.assert_allclose(found["context"], (says != said).mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(found["answers"], 1)


def test_rows_of_the_control_are_of_the_context_and_needed_by_no_answer(subject):
    batch = subject.batch(jax.random.key(1))
    rows, evidence = np.asarray(_unneeded(batch, CONTEXT, jax.random.key(2))), np.asarray(batch.evidence)
    assert (rows >= 0).all()
    assert (rows < CONTEXT).all()
    assert not (rows[:, None] == evidence.reshape(ITEMS, -1)).any()
    assert len(set(rows.tolist())) > 5
    everything = np.broadcast_to(np.arange(CONTEXT), (ITEMS, STEPS, CONTEXT))
    np.testing.assert_array_equal(_unneeded(batch._replace(evidence=everything), CONTEXT, jax.random.key(2)), -1)


def test_a_single_row_behind_the_context_is_refused(subject, drawn_run):
    task = "associative_recall(pairs=2, keys=4, values=4, delays=1)"
    run = drawn_run({"name": "one", "task": task, "model": {"layers": 1, "width": 4, "heads": 1}})
    told = dataclasses.replace(subject, run=run, condition=run.task.conditions()[0])
    with pytest.raises(ConfigError, match=r"has 1 in condition train; allowed: from 2\."):
        LatentSteps().check(told)
