"""What noise takes and a clean activation brings back, where it is known."""

import jax
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.causal_tracing import PLACES, CausalTracing, _places


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "traced",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=3, queries=2)",
        "model": {"layers": 2, "width": 8, "heads": 1, "mlp": False},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


def test_every_row_is_of_one_kind_and_the_random_one_neither_evidence_nor_answer(subject):
    batch, length = subject.batch(jax.random.key(0)), subject.run.task.length(subject.condition)
    kinds = dict(zip(PLACES, np.asarray(_places(subject, batch, length, jax.random.key(1))), strict=True))
    random = kinds.pop("random")
    assert (sum(x.astype(int) for x in kinds.values()) == 1).all()
    assert (random.sum(axis=1) == 1).all()
    assert not (random & (kinds["evidence"] | kinds["answer"])).any()
    assert len(set(random.argmax(axis=1).tolist())) > 2
    for i, (evidence, query) in enumerate(zip(batch.evidence, batch.query, strict=True)):
        assert set(np.flatnonzero(kinds["answer"][i])) == set(query.tolist())
        told = set(evidence.ravel().tolist()) - {-1} - set(query.tolist())
        assert set(np.flatnonzero(kinds["evidence"][i])) == told
        assert all(row < max(told) for row in np.flatnonzero(kinds["context"][i]))
        assert all(row > max(told) for row in np.flatnonzero(kinds["after"][i]))


def test_the_last_stream_of_the_answers_brings_all_back_and_that_of_other_rows_nothing(subject):
    found = jax.jit(lambda: CausalTracing(noise=10.0).measure(subject, [0, 1], jax.random.key(0)))()
    answer = PLACES.index("answer")
    assert abs(float(found["total"])) > 1e-4
    last = np.asarray(found["stream"][1])
    assert last[answer] == pytest.approx(float(found["total"]), abs=1e-6)
    np.testing.assert_allclose(np.delete(last, answer), 0, atol=1e-7)
    assert float(found["total"]) == pytest.approx(float(found["clean"] - found["noised"]))
    np.testing.assert_array_equal(found["mlp"], 0, "there is none")


def test_the_probability_is_that_of_the_right_answers(subject):
    """The mean over both answers of each of the items, at no noise to speak of."""
    key = jax.random.key(0)
    found = jax.jit(lambda: CausalTracing(noise=1e-6).measure(subject, [0, 1], key))()
    batch = subject.batch(jax.random.split(key)[0])
    outputs = np.asarray(subject.apply(batch)[0], np.float64)
    odds = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    right = [
        odds[i, row, batch.targets[i, query]]
        for i in range(16)
        for row, query in zip(subject.run.answer_rows(batch)[i], batch.query[i], strict=True)
    ]
    assert float(found["clean"]) == pytest.approx(np.mean(right), rel=1e-5)
    assert float(found["total"]) == pytest.approx(0, abs=1e-5)
