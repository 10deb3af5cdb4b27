"""Raised scores against the same numbers put in by hand, and which heads get them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.head_modulation import STRENGTHS, HeadModulation, raised

CONTEXT, ITEMS = 6, 16
NAMES = [f"layers.{layer}.attention.scores" for layer in (0, 1)]


def test_scores_of_columns_grow_by_a_share_of_their_size_in_the_rows_told():
    was = jnp.array([[[[2.0, -1.0, -jnp.inf], [2.0, -1.0, 4.0]], [[2.0, -1.0, 4.0], [2.0, -1.0, 4.0]]]])  # [B, N, T, S]
    change = raised(jnp.array([0.5, -1.0]), jnp.array([True, True, False]), jnp.array([[1]]))
    found = np.asarray(change.of("a.scores", was))[0]
    np.testing.assert_array_equal(found[:, 0], np.asarray(was)[0, :, 0])
    np.testing.assert_allclose(found[:, 1], [[3, -0.5, 4], [0, -2, 4]])
    hidden = raised(jnp.array([0.5, -1.0]), jnp.ones(3, bool), jnp.array([[0]])).of("a.scores", was)
    np.testing.assert_array_equal(np.asarray(hidden)[0, 0, 0], [3, -0.5, -np.inf])


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "modulated",
        "task": "associative_recall(pairs=3, keys=4, values=4, queries=2, delays=2)",
        "model": {"layers": 2, "width": 8, "heads": 2, "init": dict.fromkeys(("query", "output"), "fan_in(scale=9.0)")},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], ITEMS)


@pytest.fixture(scope="module")
def found(subject):
    return jax.device_get(jax.jit(lambda: HeadModulation().measure(subject, [0, 1], jax.random.key(0)))())


def answered(subject, batch, gains):
    """The mean log-probability and accuracy with gains [layer, head], one layer after the other."""
    edit = {}
    for layer, name in enumerate(NAMES):
        scores = np.array(subject.run.apply(batch, [name], edit)[1][name])
        for item, row, head in ((i, int(row), head) for i in range(ITEMS) for row in batch.query[i] for head in (0, 1)):
            old = scores[item, head, row, :CONTEXT]
            scores[item, head, row, :CONTEXT] = old + gains[layer][head] * abs(old)
        edit[name] = ("replace", scores)
    told = subject.answers(subject.run.apply(batch, (), edit)[0], batch)
    return float(np.mean(told["log_probability"])), float(np.mean(told["accuracy"]))


def test_heads_are_chosen_by_what_they_attend_to_and_raised_by_the_strength(subject, found):
    first, fresh, *_ = jax.random.split(jax.random.key(0), 4)
    batch = subject.batch(first)
    patterns = subject.run.apply(batch, ["*.pattern"])[1]
    each = np.arange(ITEMS)[:, None]
    rows = [np.asarray(patterns[f"layers.{i}.attention.pattern"])[each, :, np.asarray(batch.query)] for i in (0, 1)]
    context = np.stack([x[..., :CONTEXT].sum(-1).mean((0, 1)) for x in rows])
    np.testing.assert_allclose(found["context"], context, atol=1e-5)
    np.testing.assert_allclose(found["context_even"], (CONTEXT / (1 + np.asarray(batch.query))).mean(), atol=1e-5)

    away = 1 - context
    weights = {"attentive": context == context.max(), "neglecting": context == context.min()}
    weights["steered"] = away / away.mean()
    batch = subject.batch(fresh)
    for name, weight in weights.items():
        for i in (0, 3, 4):
            log, right = answered(subject, batch, STRENGTHS[i] * weight)
            assert found[name][i] == pytest.approx(log, abs=1e-4)
            assert found[f"accuracy_{name}"][i] == pytest.approx(right, abs=1e-6)
    intact = float(np.mean(subject.answers(subject.run.apply(batch)[0], batch)["log_probability"]))
    for name in (*weights, "any", "steered_shuffled"):
        assert found[name][2] == pytest.approx(intact, abs=1e-5)
        assert abs(found[name] - intact).max() > 1e-3


def test_the_controls_are_means_over_heads_at_random(subject, found):
    """Of four heads one at a time, eight times: about what all four do one by one."""
    _, fresh, drawn, _ = jax.random.split(jax.random.key(0), 4)
    batch = subject.batch(fresh)
    picks = [int(np.argmax(jax.random.uniform(one, (2, 2)))) for one in jax.random.split(drawn, 8)]
    assert len(set(picks)) > 1
    alone = [answered(subject, batch, np.eye(4)[pick].reshape(2, 2))[0] for pick in range(4)]
    assert found["any"][4] == pytest.approx(np.mean([alone[pick] for pick in picks]), abs=1e-4)
