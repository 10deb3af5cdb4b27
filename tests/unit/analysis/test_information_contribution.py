"""Grouped attention and contributions against loops over a model's patterns."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.analysis.base import Subject
from positionbias.analysis.information_contribution import InformationContribution
from positionbias.analysis.segments import grouped
from positionbias.errors import ConfigError

PAIRS = 3
ROWS = [[1, 2], [3, 4], [5, 6], [7, 8]]  # of pairs, and of the question; row 0 is filler in front
ROLES = [[0], [1, 3, 5], [2, 4, 6], [7, 8]]  # filler, keys, values, question


def test_grouped_attention_sums_columns_and_averages_rows():
    attention = jnp.array([[[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]]])
    groups = jnp.array([[[1.0, 0, 0], [1, 0, 0], [0, 1, 0]]])  # rows 0 and 1, row 2, and none
    np.testing.assert_allclose(
        grouped(attention, groups, groups)[0, 0], [[0.525, 0.475, 0], [1, 0, 0], [0, 0, 0]], atol=1e-6
    )


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "contribution",
        "task": "associative_recall(pairs=3, keys=4, values=4, queries=2, delays=2, padding=1)",
        "model": {"layers": 2, "width": 8, "heads": 2, "init": {"query": "fan_in(scale=9.0)"}},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


@pytest.fixture(scope="module")
def both(subject):
    """What it finds, and items, outputs and the mean over heads of patterns [layers, items, T, T]."""
    key = jax.random.key(0)
    found = jax.device_get(jax.jit(lambda: InformationContribution().measure(subject, [0, 1], key))())
    batch = subject.batch(key)
    outputs, sites = subject.run.apply(batch, ["*.pattern"])
    return found, batch, outputs, np.stack([sites[f"layers.{i}.attention.pattern"] for i in (0, 1)]).mean(axis=2)


@pytest.mark.parametrize(("name", "groups"), [("by_part", ROWS), ("by_role", ROLES)])
def test_attention_is_grouped_by_parts_and_by_roles(both, name, groups):
    found, _, _, pattern = both
    for g, h in np.ndindex(len(groups), len(groups)):
        of, to = groups[g], groups[h]
        known = pattern[:, :, of][..., to].sum(-1).mean((1, 2))
        np.testing.assert_allclose(found[name][:, g, h], known, atol=1e-5)
        even = np.mean([sum(column <= row for column in to) / (row + 1) for row in of])
        np.testing.assert_allclose(found[f"{name}_even"][:, g, h], even, atol=1e-5)


def test_contributions_are_of_rows_that_answer_and_their_peak_is_of_all_layers(subject, both):
    found, batch, outputs, pattern = both
    query, slot = np.asarray(batch.query), np.asarray(batch.evidence_slot)
    contribution = np.zeros((2, 16, 2, PAIRS))
    for layer, item, answer, pair in np.ndindex(2, 16, 2, PAIRS):
        contribution[layer, item, answer, pair] = pattern[layer, item, query[item, answer], ROWS[pair]].sum()
    np.testing.assert_allclose(found["contribution"], contribution.mean((1, 2)), atol=1e-5)
    summed = contribution.sum(0)
    assert found["peak"] == pytest.approx(summed.max(-1).mean(), abs=1e-5)
    assert found["found"] == pytest.approx((summed.argmax(-1) == slot).mean(), abs=1e-6)
    assert 0 < found["found"] < 1
    assert found["found_by_chance"] == pytest.approx(1 / 3, abs=1e-6)
    answer = np.asarray(subject.answers(outputs, batch)["log_probability"])
    for name, y in (("relation", answer), ("relation_shuffled", np.roll(answer, -1, axis=0))):
        assert found[name] == pytest.approx(np.corrcoef(summed.max(-1).ravel(), y.ravel())[0, 1], abs=1e-3)


@dataclasses.dataclass(frozen=True)
class Sometimes(Subject):
    """Every second item has no keys: their rows are values there."""

    def batch(self, key, items=None):
        batch = super().batch(key, items)
        role = jnp.broadcast_to(batch.tokens.role, batch.inputs.shape)
        odd = jnp.arange(len(role))[:, None] % 2 == 1
        return batch._replace(tokens=batch.tokens._replace(role=jnp.where(odd & (role == 1), 2, role)))


def test_items_without_rows_of_a_role_are_left_out_of_its_mean(subject, both):
    key, (_, _, _, pattern) = jax.random.key(0), both
    asked = Sometimes(subject.run, subject.condition, subject.items)
    found = jax.device_get(jax.jit(lambda: InformationContribution().measure(asked, [0, 1], key))())["by_role"]
    values = [sorted(ROLES[1] + ROLES[2]) if item % 2 else ROLES[2] for item in range(16)]
    to_values = [pattern[:, item][:, ROLES[1]][..., ROLES[2]].sum(-1).mean(-1) for item in range(0, 16, 2)]
    np.testing.assert_allclose(found[:, 1, 2], np.mean(to_values, axis=0), atol=1e-5)
    of_values = [pattern[:, item][:, rows][..., rows].sum(-1).mean(-1) for item, rows in enumerate(values)]
    np.testing.assert_allclose(found[:, 2, 2], np.mean(of_values, axis=0), atol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


def test_a_task_of_one_segment_is_refused():
    task = spec.build("tasks", "associative_recall(pairs=1, keys=4, values=4, delays=2)", "task")
    run = types.SimpleNamespace(task=task)
    with pytest.raises(ConfigError, match="information_contribution compares segments"):
        InformationContribution().check(Subject(run, task.conditions()[0], 4))
