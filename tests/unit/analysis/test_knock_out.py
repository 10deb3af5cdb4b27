"""Knock-out against patterns cut by hand, in a model whose weights are planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.knock_out import KnockOut, instead
from positionbias.errors import ConfigError
from positionbias.models import edits


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "knocked",
        "task": "associative_recall(pairs=3, keys=4, values=4, delays=2)",
        "model": {"layers": 2, "width": 8, "heads": 2},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


@pytest.mark.parametrize("renormalise", [True, False])
def test_columns_are_taken_out_of_the_answering_row_alone(subject, renormalise):
    analysis, key = KnockOut(window=2, renormalise=renormalise), jax.random.key(0)
    found = jax.jit(lambda: analysis.measure(subject, [0, 1], key))()
    batch = subject.batch(jax.random.split(key)[0])
    rows = np.asarray(subject.run.answer_rows(batch))[:, -1]
    evidence = np.asarray(batch.evidence)[:, -1]
    length = batch.weights.shape[-1]
    index = np.arange(length)
    holds = (index == evidence[..., None]).any(axis=1)
    own = index == rows[:, None]
    kinds = {0: holds, 1: own, 2: ~holds & ~own & (index <= rows[:, None])}
    seen = [columns.sum(axis=1).mean() for columns in kinds.values()]
    np.testing.assert_allclose(found["seen"], [seen, seen], atol=1e-6)

    def cut(columns):
        """Numpy, pattern by pattern, the rest shared out anew."""

        def change(was):
            left = np.array(was)
            for b, row in enumerate(rows):
                left[b, :, row, columns[b]] = 0
                if renormalise:
                    left[b, :, row] /= np.maximum(left[b, :, row].sum(axis=-1, keepdims=True), 1e-30)
            return jnp.asarray(left)

        return change

    def log_probability(edit):
        answers = subject.answers(subject.apply(batch, (), edit)[0], batch)
        return float(jnp.mean(answers["log_probability"][:, -1]))

    plain = log_probability({})
    for kind, columns in kinds.items():
        for first, layers in enumerate(((0, 1), (1,))):
            edit = {f"layers.{layer}.attention.pattern": edits.Edit(cut(columns)) for layer in layers}
            change = log_probability(edit) - plain
            assert float(found["log_probability"][first, kind]) == pytest.approx(change, abs=1e-5)
            assert abs(change) > 1e-5
    np.testing.assert_allclose(found["everywhere_log_probability"], found["log_probability"][0], atol=1e-6)


def test_controls_are_other_columns_and_cost_nothing_where_evidence_alone_is_read(subject):
    """A last layer is told to read the first column of the evidence alone: no other column counts."""
    patched, key = [], jax.random.key(1)

    class Planted(Subject):
        """Whose last layer looks at the last evidence from every row behind it."""

        def apply(self, batch, record=(), edit=None):
            at = jax.nn.one_hot(batch.last_evidence[:, -1], batch.weights.shape[-1])[:, None, None]
            plant = edits.replace(0.98 * at + 0.02 / batch.weights.shape[-1])
            patched.append(True)
            change = dict(edit or {})
            name = "layers.1.attention.pattern"
            last = change.pop(name, None)
            both = edits.Edit(lambda was: plant.of(name, was) if last is None else last.of(name, plant.of(name, was)))
            return super().apply(batch, record, {**change, name: both})

    planted = Planted(subject.run, subject.condition, 16)
    found = jax.jit(lambda: KnockOut().measure(planted, [1], key))()
    assert patched
    assert abs(float(found["log_probability"][0, 0])) > 30 * abs(float(found["controls_log_probability"][0, 0]))
    assert float(found["controls_log_probability"][0, 0]) != 0


def test_as_many_others_are_taken_in_their_order_or_all_there_are():
    some = jnp.array([[[1, 1, 0, 0, 0], [0, 1, 1, 1, 0]]], bool)
    others = jnp.array([[[0, 0, 1, 1, 1], [1, 0, 0, 0, 1]]], bool)
    order = jnp.array([[[0.0, 0.1, 0.9, 0.2, 0.5]], [[0.9, 0.0, 0.1, 0.2, 0.3]]])
    expected = np.array([[[[0, 0, 0, 1, 1], [1, 0, 0, 0, 1]]]], bool)
    np.testing.assert_array_equal(instead(some, others, order), expected)


def test_a_window_is_one_layer_at_least():
    with pytest.raises(ConfigError, match="window"):
        KnockOut(window=0)
