"""A dictionary that is exact, effects against differences by hand, and one that is learned of planted directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.sparse_features import SparseFeatures
from positionbias.errors import ConfigError
from positionbias.models import edits
from positionbias.models.sites import Sites

NAMES, SIZE = ["layers.0.stream"], 8


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "sparse",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
        "model": {"layers": 2, "width": SIZE, "heads": 1, "init": {"readout": "fan_in(scale=9.0)"}},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


def log_odds(subject, batch, edit):
    outputs = np.asarray(subject.apply(batch, (), edit)[0], np.float64)
    found = []
    for i, (row, query) in enumerate(zip(subject.run.answer_rows(batch)[:, 0], batch.query[:, 0], strict=True)):
        odds = np.exp(outputs[i, row] - outputs[i, row].max())
        share = odds[batch.targets[i, query]] / odds.sum()
        found.append(np.log(share / (1 - share)))
    return np.mean(found)


def test_effects_of_features_are_those_of_removing_them(subject):
    """Of the dictionary of both halves of every coordinate, which is exact: features are relu(x) and relu(-x)."""
    batch, sparse = subject.batch(jax.random.key(1)), SparseFeatures(active=SIZE)
    both = jnp.concatenate([jnp.eye(SIZE), -jnp.eye(SIZE)])
    exact = {
        "encoder": both.T[None],
        "decoder": both[None],
        "threshold": jnp.zeros((1, 2 * SIZE)),
        **dict.fromkeys(("offset", "center"), jnp.zeros((1, SIZE))),
        "scale": jnp.ones(1),
    }
    chosen = jnp.array([3, SIZE + 2])

    def ask(batch):
        judged = sparse._judged(subject, NAMES, {"learned": exact}, chosen[None, None], batch)
        return judged, sparse._attributions(subject, NAMES, exact, batch)

    told, (attribution, on) = jax.jit(ask)(batch)

    stream = np.asarray(subject.apply(batch, NAMES)[1][NAMES[0]])
    np.testing.assert_allclose(told["error_learned"], 0, atol=1e-10)
    assert float(told["learned"][0]) == pytest.approx(float(told["clean"]), rel=1e-5)
    assert float(told["ablated"][0]) != pytest.approx(float(told["clean"]), rel=1e-3)
    np.testing.assert_allclose(on[0, :SIZE], (stream > 0).mean(axis=(0, 1)), atol=1e-6)
    clean = log_odds(subject, batch, {})
    for i, (coordinate, sign) in enumerate(((3, 1), (2, -1))):
        part = np.zeros_like(stream)
        part[..., coordinate] = sign * np.maximum(sign * stream[..., coordinate], 0)
        for share, found in ((1, told["changes"][0, 0, i]), (1e-2, attribution[0, chosen[i]] / 100)):
            change = log_odds(subject, batch, {NAMES[0]: edits.add(-share * part)}) - clean
            assert float(found) == pytest.approx(change, rel=0.05, abs=2e-5)


@dataclasses.dataclass(frozen=True)
class Coded(Subject):
    """A stream that holds one of nine directions of eight dimensions, by the row's token, and says nothing."""

    def apply(self, batch, record=(), edit=None):
        sites = Sites(record, edit)
        table = np.random.default_rng(0).normal(size=(9, SIZE)).astype(np.float32)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        stream = sites("layers.0.stream", jnp.asarray(table)[batch.inputs])
        return jnp.zeros((*batch.inputs.shape, 9)) + 0 * stream[..., :1], sites.recorded


def test_planted_directions_are_learned(subject):
    """One feature a row explains them all, where directions at random explain less; that nothing is said stays so."""
    coded, sparse = Coded(subject.run, subject.condition, 64), SparseFeatures(active=1, updates=300, rate=1e-2)
    found = jax.jit(lambda: sparse.measure(coded, [0], jax.random.key(0)))()
    assert found["explained"][0] > 0.95
    assert found["explained_random"][0] < 0.85
    assert 0.5 < found["active"][0] <= 1
    assert 0 < found["dead"][0] < 1
    for name in ("recovered", "recovered_random", "attribution", "ablation"):
        np.testing.assert_allclose(found[name], 0, atol=1e-6)
    assert float(found["clean"]) == pytest.approx(np.log(9), rel=1e-5)


def test_too_few_features_are_refused(subject):
    with pytest.raises(ConfigError, match=r"multiple = 1 makes 8 features of model.width = 8; .* 16 features"):
        SparseFeatures(multiple=1).check(subject)
