"""Attention to the context against loops over a model's patterns."""

import types

import jax
import numpy as np
import pytest

from positionbias import spec
from positionbias.analysis.base import Subject
from positionbias.analysis.context_attention import ContextAttention
from positionbias.analysis.segments import grouped, of_roles, roles
from positionbias.errors import ConfigError

CONTEXT = 6
ROLES = [[], [0, 2, 4], [1, 3, 5], [6, 7]]  # no filler in front; keys, values, question


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "context",
        "task": "associative_recall(pairs=3, keys=4, values=4, queries=2, delays=2)",
        "model": {"layers": 2, "width": 8, "heads": 2, "mask": "bidirectional", "init": {"query": "fan_in(scale=9.0)"}},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


def test_shares_are_those_of_the_rows_before_the_question(subject):
    key = jax.random.key(0)
    found = jax.device_get(jax.jit(lambda: ContextAttention().measure(subject, [0, 1], key))())
    batch = subject.batch(key)
    outputs, sites = subject.run.apply(batch, ["*.pattern"])
    pattern = np.stack([sites[f"layers.{i}.attention.pattern"] for i in (0, 1)])  # [L, B, N, T, T]
    query, items = np.asarray(batch.query), np.arange(16)[:, None]
    answers = pattern[:, items, :, query]  # [B, A, L, N, T]
    share = answers[..., :CONTEXT].sum(-1)
    np.testing.assert_allclose(found["context"], share.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(found["context_even"], CONTEXT / 8, atol=1e-5)
    for role, rows in enumerate(ROLES):
        known = pattern[..., rows, :CONTEXT].sum(-1).mean((1, 2, 3)) if rows else 0
        np.testing.assert_allclose(found["from_role"][:, role], known, atol=1e-5)
        np.testing.assert_allclose(found["to_role"][:, role], answers[..., rows].sum(-1).mean((0, 1, 3)), atol=1e-5)
        np.testing.assert_allclose(found["from_role_even"][:, role], CONTEXT / 8 if rows else 0, atol=1e-5)
        np.testing.assert_allclose(found["to_role_even"][:, role], len(rows) / 8, atol=1e-5)
    answer = np.asarray(subject.answers(outputs, batch)["log_probability"])
    for name, y in (("relation", answer), ("relation_shuffled", np.roll(answer, -1, axis=0))):
        for layer, head in np.ndindex(2, 2):
            known = np.corrcoef(share[:, :, layer, head].ravel(), y.ravel())[0, 1]
            assert found[name][layer, head] == pytest.approx(known, abs=1e-3)


def test_a_task_without_a_context_is_refused():
    task = spec.build("tasks", "rebinding", "task")
    run = types.SimpleNamespace(task=task)
    with pytest.raises(ConfigError, match=r"the context of the task rebinding is 0 of \d+ rows; allowed: from 1 to"):
        ContextAttention().check(Subject(run, task.conditions()[0], 4))


def test_items_differ_in_how_many_rows_of_a_role_they_have():
    """`set_disjointness` lays each out anew: means are over the items that have such rows."""
    task = spec.build("tasks", "set_disjointness", "task")
    subject = Subject(types.SimpleNamespace(task=task), task.conditions()[0], 4)
    assert roles(subject) == 5

    def drawn():
        batch = task.batch(jax.random.key(0), subject.condition, 4)
        return batch, of_roles(subject, batch)

    batch, role = jax.device_get(jax.jit(drawn)())
    for item, row in np.ndindex(4, role.shape[1]):
        told = int(batch.tokens.role[item, row]) if batch.tokens.valid[item, row] else None
        assert [u for u in range(5) if role[item, row, u]] == ([] if told is None else [told])
    assert grouped(np.ones((4, 1, role.shape[1], role.shape[1])), role, role).shape == (4, 1, 5, 5)
