"""Noise in hindsight against what is known of it, and counterfactuals against odds and planted models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.gumbel_counterfactuals import GumbelCounterfactuals, hindsight
from positionbias.analysis.pairs import corrupted
from positionbias.models import edits

ITEMS, KEY = 512, jax.random.key(0)


def test_noise_in_hindsight_says_the_same_again_and_has_the_law_of_noise():
    logits, changed = jnp.array([1.0, 0.0, -1.0, 0.5]), jnp.array([0.0, 2.0, -1.0, 0.5])
    draws = 100_000
    said = jax.random.categorical(jax.random.key(1), jnp.broadcast_to(logits, (draws, 4)))
    noise = jax.jit(hindsight)(jax.random.key(2), jnp.broadcast_to(logits, (draws, 4)), said)
    assert (jnp.argmax(logits + noise, axis=-1) == said).all()
    np.testing.assert_allclose(jnp.mean(noise, axis=0), 0.5772, atol=0.02)
    np.testing.assert_allclose(jnp.var(noise, axis=0), np.pi**2 / 6, atol=0.05)
    np.testing.assert_allclose(np.corrcoef(np.asarray(noise).T), np.eye(4), atol=0.015)
    other = jnp.argmax(changed + noise, axis=-1)
    np.testing.assert_allclose(np.bincount(other, minlength=4) / draws, jax.nn.softmax(changed), atol=0.005)
    assert (other[said == 1] == 1).all(), "what became likelier against all others is said again"
    apart = 0.5 * jnp.sum(jnp.abs(jax.nn.softmax(changed) - jax.nn.softmax(logits)))
    assert apart <= jnp.mean(other != said) < 0.75 * (1 - jax.nn.softmax(changed) @ jax.nn.softmax(logits))


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "counterfactual",
        "task": "associative_recall(pairs=3, keys=4, values=4, delays=4, queries=2)",
        "model": {"layers": 1, "width": 16, "heads": 2, "norm": "none", "mlp": False},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], ITEMS)


@pytest.fixture(scope="module")
def measure(subject):
    """The analysis of the model with what its two heads add multiplied by these, and that model; compiled once."""

    def scaled(sizes):
        def one(path, x):
            if not any(getattr(entry, "key", entry) == "output" for entry in path):
                return x
            return (x.reshape(2, -1, x.shape[-1]) * sizes[:, None, None]).reshape(x.shape)

        weights = jax.tree_util.tree_map_with_path(one, subject.run.weights)
        return dataclasses.replace(subject, run=dataclasses.replace(subject.run, weights=weights))

    ask = jax.jit(lambda sizes: GumbelCounterfactuals().measure(scaled(sizes), [0], KEY))
    return lambda *sizes: (
        scaled(jnp.array(sizes)),
        {name: np.asarray(x) for name, x in ask(jnp.array(sizes, jnp.float32)).items()},
    )


def odds(subject, batch, edit=None):
    """Of rows that answer and of all others, [B, A, V] and [B, others, V]."""
    outputs = jax.nn.softmax(subject.apply(batch, (), edit)[0])
    rows = np.asarray(subject.run.answer_rows(batch))
    others = np.array([sorted(set(range(outputs.shape[1])) - set(some)) for some in rows.tolist()])
    each = np.arange(len(rows))[:, None]
    return np.asarray(outputs)[each, rows], np.asarray(outputs)[each, others]


def test_with_fresh_noise_shares_are_those_of_two_draws_and_with_the_same_noise_fewer(measure):
    subject, found = measure(6.0, 2.0)
    batch = subject.batch(jax.random.split(KEY)[0])
    before = odds(subject, batch)
    assert found["reproduced"] == 1

    def fresh(after):
        return [1 - (one * other).sum(-1).mean() for one, other in zip(before, after, strict=True)]

    def least(after):
        return [0.5 * np.abs(one - other).sum(-1).mean() for one, other in zip(before, after, strict=True)]

    for name, known in zip(("answers", "others"), fresh(before), strict=True):
        assert found[f"resampled_{name}"] == pytest.approx(known, abs=0.05)
    for head in range(2):
        after = odds(subject, batch, {"layers.0.attention.heads": edits.zero(heads=head)})
        for name, most, few in zip(("answers", "others"), fresh(after), least(after), strict=True):
            assert found[f"{name}_fresh"][0, head] == pytest.approx(most, abs=0.05)
            assert few - 0.03 < found[name][0, head] < found[f"{name}_fresh"][0, head] - 0.05
    assert found["answers"][0, 0] > found["answers"][0, 1] > 0
    after = odds(subject, batch._replace(inputs=corrupted(batch)))
    differ = np.asarray((corrupted(batch) != batch.inputs).any(axis=1))
    last = 1 - (before[0] * after[0])[differ, -1].sum(-1).mean()
    assert found["swap_answer_fresh"] == pytest.approx(last, abs=0.05)
    assert 0 < found["swap_answer"] < last


def test_a_head_that_adds_nothing_has_no_effect_at_all_and_fresh_noise_gives_it_one(measure):
    _, found = measure(6.0, 0.0)
    assert found["answers"][0, 1] == 0 == found["others"][0, 1]
    assert found["answers"][0, 0] > 0
    assert found["answers_fresh"][0, 1] == pytest.approx(float(found["resampled_answers"]))
    assert found["answers_fresh"][0, 1] > 0.3


def test_an_input_that_no_row_reads_changes_the_row_that_has_it_alone(measure):
    subject, found = measure(0.0, 0.0)
    others = subject.run.task.length(subject.condition) - 2
    assert found["swap_answer"] == 0 == found["swap_answers"]
    assert 0 < found["swap_others"] <= 1 / others
    assert found["swap_answer_fresh"] > 0.3
    assert found["swap_others_fresh"] > 0.3
