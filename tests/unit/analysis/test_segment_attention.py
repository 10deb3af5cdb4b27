"""Attention to gold segments, and answers where it is changed, against the same taken from the model by hand."""

import jax
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.run import Asked, across
from positionbias.analysis.segment_attention import FACTORS, SegmentAttention
from positionbias.analysis.table import table

T, PAIRS = 8, 3  # rows, pairs


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "segments",
        "task": "associative_recall(pairs=3, keys=4, values=4, queries=2, delays=2)",
        "model": {
            "layers": 2,
            "width": 8,
            "heads": 2,
            "init": {"query": "fan_in(scale=9.0)", "output": "fan_in(scale=9.0)"},
        },
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


@pytest.fixture(scope="module")
def found(subject):
    analysis, key = SegmentAttention(), jax.random.key(0)
    return jax.device_get(jax.jit(lambda: analysis.measure(subject, [0, 1], key))())


@pytest.fixture(scope="module")
def batch(subject):
    return subject.batch(jax.random.key(0))


def shares(subject, batch):
    """[items, answers, layers, heads], item by item."""
    _, sites = subject.run.apply(batch, ["*.pattern"])
    found = np.zeros((16, 2, 2, 2))
    for item, answer, layer in np.ndindex(16, 2, 2):
        pair = int(batch.evidence_slot[item, answer])
        row = int(batch.query[item, answer])
        weights = np.asarray(sites[f"layers.{layer}.attention.pattern"])[item, :, row]
        found[item, answer, layer] = weights[:, 2 * pair : 2 * pair + 2].sum(axis=-1)
    return found


def changed(subject, batch, factor, layers, heads, by):
    """The mean log-probability where weights on the pair `by` behind the asked one are multiplied."""
    names = [f"layers.{layer}.attention.pattern" for layer in (0, 1)]
    edit = {}
    for layer in (0, 1):  # those of the first layer before the second is computed from what they make
        _, sites = subject.run.apply(batch, names, edit)
        pattern = np.array(sites[names[layer]])
        for item, answer, head in np.ndindex(16, 2, 2):
            if layer in layers and head in heads:
                pair, row = int(batch.evidence_slot[item, answer] + by) % PAIRS, int(batch.query[item, answer])
                pattern[item, head, row, 2 * pair : 2 * pair + 2] *= factor
                pattern[item, head, row] /= pattern[item, head, row].sum()
        edit[names[layer]] = ("replace", pattern)
    outputs, _ = subject.run.apply(batch, (), edit)
    return float(np.mean(subject.answers(outputs, batch)["log_probability"]))


def test_shares_are_those_of_the_pair_that_is_asked_for(subject, batch, found):
    by_hand = shares(subject, batch)
    np.testing.assert_allclose(found["segment"], by_hand.mean(axis=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(found["evidence"], found["segment"], atol=1e-6)
    assert found["strongest"] == found["segment"].max()
    even = np.mean(2 / (1 + np.asarray(batch.query)))
    np.testing.assert_allclose(found["segment_even"], even, atol=1e-6)


def test_the_relation_is_that_of_shares_and_answers(subject, batch, found):
    outputs, _ = subject.run.apply(batch)
    answer = np.asarray(subject.answers(outputs, batch)["log_probability"])
    by_hand = shares(subject, batch)
    for name, y in (("relation", answer), ("relation_shuffled", np.roll(answer, -1, axis=0))):
        for layer, head in np.ndindex(2, 2):
            known = np.corrcoef(by_hand[:, :, layer, head].ravel(), y.ravel())[0, 1]
            assert found[name][layer, head] == pytest.approx(known, abs=1e-3)


@pytest.mark.parametrize(("name", "by"), [("", 0), ("_other", 1)])
def test_answers_change_with_attention_to_the_asked_pair_and_to_the_next(subject, batch, found, name, by):
    intact = changed(subject, batch, 1, [], [], by)
    for factor, told in zip(FACTORS, found[f"scaled{name}"], strict=True):
        assert told == pytest.approx(changed(subject, batch, factor, [0, 1], [0, 1], by), abs=1e-4)
    for layer, head in np.ndindex(2, 2):
        known = changed(subject, batch, 0, [layer], [head], by) - intact
        assert found[f"without{name}"][layer, head] == pytest.approx(known, abs=1e-4)
    assert abs(found[f"without{name}"]).max() > 1e-2


def test_attention_and_answers_are_correlated_over_replicas():
    """Of the arrays of one number a replica, before training as after it, in the file and in the terminal."""
    analysis = SegmentAttention()
    sizes = {"layer": 1, "head": 1, "factor": len(FACTORS)}
    blank = {name: np.zeros((4, *(sizes[axis] for axis in axes))) for name, axes in analysis.axes.items()}
    trained = {**blank, "strongest": np.array([0.1, 0.2, 0.3, 0.4]), "answered": np.array([-4.0, -1.0, -3.0, -2.0])}
    found = Asked(analysis, {"layer": ("0",), **analysis.labels}, trained, blank)
    told = across(found)["over_replicas"]
    assert told["numbers"][0]["mean"] == pytest.approx(0.4)
    assert told["at_init"] == [{"mean": None, "low": None, "high": None}]
    assert table(found).splitlines()[-1].startswith("  over_replicas: 0.400 [")
    assert table(found).endswith("before training nothing")
