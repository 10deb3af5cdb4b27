"""What suppressing a segment changes, against patterns with its columns taken away by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject, kl
from positionbias.analysis.segment_suppression import SegmentSuppression

ITEMS, T = 16, 8
ROWS = [[0, 1], [2, 3], [4, 5], [6, 7]]  # three pairs and the question


def test_divergence_is_that_of_two_known_distributions():
    """KL((1/2, 1/2) || (1/4, 3/4)) = log(2 / sqrt(3)), however logits are shifted."""
    base, other = jnp.zeros(2) + 3, jnp.log(jnp.array([1.0, 3.0])) - 5
    assert float(kl(base, other)) == pytest.approx(np.log(2 / np.sqrt(3)), abs=1e-6)


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "suppressed",
        "task": "associative_recall(pairs=3, keys=4, values=4, queries=2, delays=2)",
        "model": {"layers": 2, "width": 8, "heads": 2, "init": {"output": "fan_in(scale=9.0)"}},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], ITEMS)


def suppressed(subject, batch, segment):
    """Outputs where rows outside the segment do not look at it, layer by layer."""
    names, edit = [f"layers.{layer}.attention.pattern" for layer in (0, 1)], {}
    for name in names:
        pattern = np.array(subject.run.apply(batch, [name], edit)[1][name])
        for row in range(T):
            if row not in ROWS[segment]:
                pattern[:, :, row, ROWS[segment]] = 0
                pattern[:, :, row] /= pattern[:, :, row].sum(-1, keepdims=True)
        edit[name] = ("replace", pattern)
    return subject.run.apply(batch, (), edit)[0]


def test_rows_behind_and_answers_change_as_they_do_by_hand(subject):
    key = jax.random.key(0)
    found = jax.device_get(jax.jit(lambda: SegmentSuppression().measure(subject, [0, 1], key))())
    batch = subject.batch(key)
    base = subject.run.apply(batch)[0]
    intact = np.asarray(subject.answers(base, batch)["log_probability"])
    change = []
    for segment in range(3):
        outputs = suppressed(subject, batch, segment)
        p, q = (np.asarray(jax.nn.log_softmax(x)) for x in (base, outputs))
        apart = (np.exp(p) * (p - q)).sum(-1).mean(0)
        for part, rows in enumerate(ROWS):
            assert found["changed"][segment, part] == pytest.approx(apart[rows].mean(), abs=1e-5)
        change.append(np.asarray(subject.answers(outputs, batch)["log_probability"]) - intact)
    change, slot = np.array(change), np.asarray(batch.evidence_slot)
    np.testing.assert_allclose(found["answer"], change.mean((1, 2)), atol=1e-5)
    needs = np.arange(3)[:, None, None] == slot
    assert found["needed"] == pytest.approx(change[needs].mean(), abs=1e-5)
    assert found["others"] == pytest.approx(change[~needs].mean(), abs=1e-5)
    assert found["needed_first"] == pytest.approx((change.argmin(0) == slot).mean(), abs=1e-6)
    assert found["needed_by_chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert np.abs(change).max() > 0.1


def test_nothing_changes_in_front_of_a_segment_under_a_causal_mask(subject):
    found = SegmentSuppression().measure(subject, [0, 1], jax.random.key(1))
    changed = np.asarray(found["changed"])
    np.testing.assert_allclose(np.tril(changed), 0, atol=1e-6)
    assert (changed[np.triu_indices(3, 1)] > 1e-4).all()
