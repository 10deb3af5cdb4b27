"""Circuits: how they are cut, what dangles, what two share by chance, and what a run keeps of one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.circuit import Circuit
from positionbias.analysis.circuit_overlap import CircuitOverlap
from positionbias.analysis.circuits import by_size, faithfulness, greedy, hypergeometric, live, overlap, used
from positionbias.analysis.edges import Block, Graph, graph
from positionbias.errors import ConfigError

# The input, one head, one MLP: 3 + 2 + 3 edges.
SMALL = Graph(
    (Block("e", ("input",), False), Block("h", ("a0.0",), True), Block("m", ("m0",), False)),
    (
        Block("q", ("a0.0.q",), True, 1, range(1, 2)),
        Block("k", ("a0.0.k",), True, 1, range(1, 2)),
        Block("v", ("a0.0.v",), True, 1, range(1, 2)),
        Block("i", ("m0",), False, 2, range(2, 3)),
        Block("s", ("output",), False, 3),
    ),
)
REAL = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], bool)
SCORES = jnp.array([[9.0, -2.0, 7.0, 8.0, 1.0], [100.0, 100.0, 100.0, 3.0, 4.0], [100.0, 100.0, 100.0, 100.0, -5.0]])


def test_edges_are_taken_by_their_sizes():
    np.testing.assert_array_equal(SMALL.real, REAL)
    order = np.asarray(by_size(SMALL, SCORES))
    np.testing.assert_array_equal(np.where(REAL, order, -1), [[0, 6, 2, 1, 7], [-1, -1, -1, 5, 4], [-1, -1, -1, -1, 3]])
    assert (order[~REAL] >= 8).all()


def test_greedily_edges_are_taken_where_they_lead_to_the_output():
    """The MLP's edge first, then what it reads, then the head's edge to the output, and what the head reads."""
    order = np.asarray(greedy(SMALL, SCORES))
    np.testing.assert_array_equal(np.where(REAL, order, -1), [[3, 6, 4, 1, 7], [-1, -1, -1, 5, 2], [-1, -1, -1, -1, 0]])
    assert (order[~REAL] >= 8).all()


def test_what_is_on_no_way_from_the_input_to_the_output_dangles():
    circuit = np.zeros(REAL.shape, bool)
    circuit[0, 0] = True  # the query of a head that nobody reads
    circuit[2, 4] = True  # an MLP that reads nothing
    assert not live(SMALL, jnp.asarray(circuit)).any()
    circuit[1, 3] = True
    np.testing.assert_array_equal(live(SMALL, jnp.asarray(circuit)), circuit)
    np.testing.assert_array_equal(used(SMALL, jnp.asarray(circuit)), [True, True])
    circuit[1, 3], circuit[0, 4] = False, True
    assert np.argwhere(live(SMALL, jnp.asarray(circuit))).tolist() == [[0, 4]]
    assert not used(SMALL, jnp.asarray(circuit)).any()


@pytest.mark.parametrize(("total", "first", "second"), [(10, 4, 3), (10, 8, 7), (6, 6, 2), (5, 0, 3), (400, 100, 80)])
def test_random_sets_share_as_many_as_they_are_counted_to(total, first, second):
    known = [math.comb(first, x) * math.comb(total - first, second - x) if x <= second else 0 for x in range(total + 1)]
    known = np.array([float(x) / math.comb(total, second) for x in known])
    found = np.asarray(hypergeometric(total, jnp.asarray(first), jnp.asarray(second)))
    np.testing.assert_allclose(found, known, atol=1e-5)
    a, b = np.arange(total) < first, np.arange(total) >= total - second
    index, chance, p = map(float, overlap(jnp.asarray(a), jnp.asarray(b)))
    both = (a & b).sum()
    assert index == pytest.approx(both / max(first + second - both, 1))
    assert chance == pytest.approx(sum(p * x / max(first + second - x, 1) for x, p in enumerate(known)), abs=1e-4)
    assert p == pytest.approx(known[both:].sum(), abs=1e-4)


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "circuits",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
        "model": {"layers": 1, "width": 8, "heads": 2, "position": "none"},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


def test_all_edges_keep_all_no_edge_keeps_nothing_and_those_that_dangle_change_nothing(subject):
    parts = graph(subject)
    some = jax.random.uniform(jax.random.key(3), (4, *parts.real.shape)) < 0.5
    asked = jnp.concatenate([jnp.zeros((1, *parts.real.shape), bool), jnp.asarray(parts.real)[None], some & parts.real])
    alive = jax.vmap(lambda one: live(parts, one))(asked)
    assert (np.asarray(alive) != np.asarray(asked)).any()

    def both():
        batch = subject.batch(jax.random.key(0))
        return [faithfulness(subject, parts, batch, circuits) for circuits in (asked, alive)]

    found, pruned = jax.jit(both)()
    np.testing.assert_allclose(found[:2], [0, 1], atol=1e-4)
    assert len(set(np.asarray(found).round(3).tolist())) > 3
    np.testing.assert_allclose(found, pruned, atol=1e-4)


def test_halves_by_evidence_are_earlier_and_later_items(subject):
    analysis = CircuitOverlap(against="evidence")
    (_, first), (_, second) = analysis._sets(subject, jax.random.key(1))
    assert first.inputs.shape == second.inputs.shape == subject.batch(jax.random.key(0)).inputs.shape
    stand = [np.asarray(batch.last_evidence[:, -1]) for batch in (first, second)]
    assert stand[0].max() <= stand[1].min()
    assert stand[0].mean() < stand[1].mean()
    each = np.arange(len(second.inputs))
    answers = np.asarray(second.targets)[each, np.asarray(second.query[:, -1])]
    np.testing.assert_array_equal(np.asarray(second.inputs)[each, stand[1]], answers)


def test_what_cannot_be_asked_is_told(subject):
    with pytest.raises(ConfigError, match="unknown set of items 'evidnce', did you mean 'evidence'"):
        CircuitOverlap(against="evidnce").check(subject)
    CircuitOverlap(against="shifted").check(subject)
    with pytest.raises(ConfigError, match=r"against = 'train' is not allowed; .* another condition than train"):
        CircuitOverlap(against="train").check(subject)
    alike = (0.5, 0.5), (0.5, 0.5000001)  # of which a report has one name for two
    sizes = [{"sizes": told} for told in ((0.5, 0.1), (0.5, 1.0), *alike)]
    for wrong in ({"rule": "best"}, {"scores": "random"}, {"steps": 0}, *sizes):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Circuit(**wrong)
