"""Nodes of an exact dictionary against runs edited by hand, sums of effects, and a circuit that is planted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject, stacked
from positionbias.analysis.feature_circuit import CIRCUITS, FeatureCircuit, first
from positionbias.analysis.feature_nodes import Features, Neurons, Nodes
from positionbias.errors import ConfigError
from positionbias.models import edits
from positionbias.models.sites import Sites

NAMES, SIZE = ["layers.0.stream", "layers.1.stream"], 8
RAW = {
    "name": "circuit",
    "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
    "model": {"layers": 2, "width": SIZE, "heads": 1, "init": {"readout": "fan_in(scale=9.0)"}},
}


@pytest.fixture(scope="module")
def subject(drawn_run):
    run = drawn_run(RAW)
    return Subject(run, run.task.conditions()[0], 16)


def halves(error):
    """The dictionary of both halves of every coordinate, relu(x) and relu(-x), but for those of an `error`."""
    both = np.concatenate([np.eye(SIZE), -np.eye(SIZE)]).astype(np.float32)
    both[list(error)] = 0
    nothing = jnp.zeros((2, SIZE))
    one = {"encoder": jnp.stack([both.T] * 2), "decoder": jnp.stack([both] * 2), "threshold": jnp.zeros((2, 2 * SIZE))}
    return Features(FeatureCircuit(active=SIZE), one | {"offset": nothing, "center": nothing, "scale": jnp.ones(2)})


def log_odds(subject, batch, edit):
    """Of every item, by hand, in float64; also the stream of the second layer."""
    outputs, seen = subject.apply(batch, NAMES, edit)
    outputs, found = np.asarray(outputs, np.float64), []
    for i, (row, query) in enumerate(zip(subject.run.answer_rows(batch)[:, 0], batch.query[:, 0], strict=True)):
        odds = np.exp(outputs[i, row] - outputs[i, row].max())
        share = odds[batch.targets[i, query]] / odds.sum()
        found.append(np.log(share / (1 - share)))
    return np.array(found), np.asarray(seen[NAMES[1]], np.float64)


def test_nodes_are_taken_away_to_their_means(subject):
    """A feature is one half of a coordinate; the error is both halves of the coordinate that the dictionary lacks."""
    other, batch = (subject.batch(jax.random.key(seed)) for seed in (1, 2))
    coder = halves(error=(5, 5 + SIZE))
    x, y = (np.asarray(stacked(subject, NAMES, one)) for one in (batch, other))
    chosen = jnp.array([[3, SIZE + 2, 2 * SIZE]] * 2)

    def ask(other, batch):
        nodes = Nodes.of(subject, NAMES, coder, other)
        return nodes.without(batch, chosen), *nodes.edges(batch, chosen), nodes.alive

    found, edges, exact, alive = jax.jit(ask)(other, batch)

    def half(x, sign):
        return sign * np.maximum(sign * x, 0)

    def parts(x):
        return [half(x[..., 3], 1), half(x[..., 2], -1), x[..., 5]]

    def removal(layer, number):
        coordinate = (3, 2, 5)[number]
        change = np.zeros_like(x[layer])
        change[..., coordinate] = parts(y[layer])[number].mean(axis=0) - parts(x[layer])[number]
        return change

    for layer, name in enumerate(NAMES):
        for number in range(3):
            expected, _ = log_odds(subject, batch, {name: edits.add(removal(layer, number))})
            assert float(found[layer, number]) == pytest.approx(expected.mean(), abs=2e-5), (layer, number)
    assert np.asarray(alive[0, :SIZE]).tolist() == [(i != 5) and (y[0][..., i] > 0).any() for i in range(SIZE)]

    slopes = np.zeros((3, *x[1].shape[:2]))  # of m along the nodes of the second layer, by differences
    for number, coordinate in enumerate((3, 2, 5)):
        for row in range(x[1].shape[1]):
            nudge = np.zeros_like(x[1])
            nudge[:, row, coordinate] = 1e-2
            up, down = (log_odds(subject, batch, {NAMES[1]: edits.add(s * nudge)})[0] for s in (1, -1))
            slopes[number, :, row] = (up - down) / 2e-2
    for u in range(3):
        for share, told in ((1.0, exact), (1e-2, edges / 100)):
            changed = log_odds(subject, batch, {NAMES[0]: edits.add(share * removal(0, u))})[1]
            for d in range(3):
                expected = np.mean(np.sum(slopes[d] * (parts(changed)[d] - parts(x[1])[d]), axis=1))
                assert float(told[0, d, u]) == pytest.approx(expected, rel=0.05, abs=2e-4 * share), (u, d, share)


@pytest.mark.parametrize("coder", [Neurons(), halves(error=(5, 5 + SIZE))], ids=["neurons", "features"])
def test_effects_of_a_layer_add_up_to_what_its_mean_does(subject, coder):
    other, batch = (subject.batch(jax.random.key(seed)) for seed in (1, 2))
    x, y = (np.asarray(stacked(subject, NAMES, one)) for one in (batch, other))
    effects = jax.jit(lambda other, batch: Nodes.of(subject, NAMES, coder, other).effects(batch, 400))(other, batch)
    clean, _ = log_odds(subject, batch, {})
    for layer, name in enumerate(NAMES):
        change = log_odds(subject, batch, {name: edits.replace(np.broadcast_to(y[layer].mean(axis=0), x[layer].shape))})
        assert float(effects[layer].sum()) == pytest.approx((change[0] - clean).mean(), rel=2e-3)
        assert float(np.abs(effects[layer, -1])) > 1e-5 or isinstance(coder, Neurons)


def test_circuits_are_of_the_largest_of_either_sign():
    scores = jnp.array([[0.5, -3.0, 0.0], [1.0, -0.1, 2.0]])
    found = first(scores, jnp.array([1, 3, 6]))
    assert found.astype(int).tolist() == [
        [[0, 1, 0], [0, 0, 0]],
        [[0, 1, 0], [1, 0, 1]],
        [[1, 1, 1], [1, 1, 1]],
    ]


@dataclasses.dataclass(frozen=True)
class Coded(Subject):
    """Streams that hold one of nine directions of eight dimensions, by the row's token, and answers read from them.

    The first layer's is scaled, the second is twice as much of it; the direction of a token is odds for that token.
    """

    def apply(self, batch, record=(), edit=None):
        sites = Sites(record, edit)
        table = np.random.default_rng(0).normal(size=(9, SIZE)).astype(np.float32)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        first = sites(NAMES[0], jnp.asarray(table)[batch.inputs])
        second = sites(NAMES[1], 2 * first)
        return 4 * second @ table.T, sites.recorded


def test_a_planted_circuit_is_found(subject):
    """Answers are read off the last row's direction: few features say them, and all of them together all."""
    run = subject.run
    coded = Coded(run, subject.condition, 64)
    asked = FeatureCircuit(active=1, updates=300, rate=1e-2)
    found = jax.jit(lambda: asked.measure(coded, [0, 1], jax.random.key(0)))()
    by_kind = dict(zip(CIRCUITS, np.asarray(found["faithfulness"]), strict=True))
    sizes = list(map(int, asked.labelled(coded, [0, 1])["size"]))
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 66]
    for kind in ("features", "neurons", "random"):
        assert by_kind[kind][-1] == pytest.approx(1, abs=1e-4), kind
    assert by_kind["complement"][-1] == pytest.approx(0, abs=1e-4)
    # Nine directions of two layers, and the error of none.
    assert by_kind["features"][sizes.index(32)] == pytest.approx(1, abs=0.02)
    assert by_kind["features"][sizes.index(8)] > by_kind["random"][sizes.index(8)] + 0.3
    assert float(found["agreement"][0]) > 0.6


def test_one_layer_is_refused(drawn_run):
    run = drawn_run({**RAW, "model": {**RAW["model"], "layers": 1}})
    with pytest.raises(ConfigError, match=r"goes from layer to layer, model.layers = 1; allowed: 2 or more"):
        FeatureCircuit().layers(Subject(run, run.task.conditions()[0], 4))


def test_steps_are_counted():
    with pytest.raises(ConfigError, match="steps"):
        FeatureCircuit(steps=0)
