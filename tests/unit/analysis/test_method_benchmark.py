"""Directions of streams that are made to have one, and what an interchange along them moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.method_benchmark import METHODS, MethodBenchmark, component, means, probe
from positionbias.evaluation.loading import load

WAY = np.array([3.0, 0.0, 4.0, 0.0], np.float32) / 5


@pytest.fixture(scope="module")
def separated():
    """Streams whose value is along WAY, with more variance along another axis."""
    random = np.random.default_rng(0)
    value = random.integers(0, 2, 400)
    noise = random.normal(size=(400, 4)) * (0.3, 8.0, 0.3, 0.3)
    return jnp.asarray(noise + 2 * value[:, None] * WAY, jnp.float32), jnp.asarray(value)


def test_the_probe_and_the_means_of_many_find_what_separates_and_the_component_what_varies(separated):
    streams, value = separated
    assert abs(float(probe(streams, value) @ WAY)) > 0.95
    quiet = streams.at[:, 1].multiply(0.01)
    assert float(means(quiet, value) @ WAY) > 0.99
    assert abs(float(component(streams)[1])) > 0.99
    known = np.linalg.svd(np.asarray(streams) - np.asarray(streams).mean(0))[2][0]
    assert abs(float(component(streams) @ known)) == pytest.approx(1, abs=1e-4)


def test_one_value_alone_has_no_direction_and_no_nan(separated):
    streams, value = separated
    for found in (means(streams, value * 0), component(streams * 0), probe(streams * 0, value)):
        assert np.isfinite(np.asarray(found)).all()


def test_rows_exchanged_as_a_whole_change_nothing_without_positions_and_a_learned_direction_does(
    tmp_path, unmeasured_run
):
    raw = {
        "name": "benched",
        "task": "associative_recall(pairs=3, keys=8, values=24, delays=1, shift=0)",
        "model": {
            "layers": 2,
            "width": 32,
            "heads": 2,
            "operator": "[short_convolution(width=2, gated=True), softmax]",
            "position": "none",
            "mlp": False,
            "init": {"embedding": "normal(std=0.5)"},
        },
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 400, "batch_size": 32, "replicas": 1, "log_every": 400},
        "evaluation": {"items": 8, "batch_size": 8, "influence_items": 8},
    }
    run = load(unmeasured_run(raw, tmp_path / "run"))
    subject = Subject(run, run.task.conditions()[0], 64)
    analysis = MethodBenchmark(updates=150, examples=64)
    found = jax.jit(lambda: analysis.measure(subject, [0, 1], jax.random.key(0)))()
    first = dict(zip(METHODS, np.asarray(found["log_odds"])[0], strict=True))
    assert first["whole"] == pytest.approx(0, abs=1e-3)
    assert first["das"] > 2 * max(abs(first["random"]), 1)
    assert first["das"] > float(found["shuffled"][0, 2]) + 1
    np.testing.assert_allclose(found["log_odds"][1], 0, atol=1e-4, err_msg="no row behind reads the last stream")


def test_what_is_moved_is_told_of_the_pairs_whose_answers_differ(planted):
    """The planted boolean turns -10 to 10 in them; in half of all pairs both sides are one, and nothing is to move."""
    analysis, names = MethodBenchmark(variable="condition"), ["layers.0.stream"]
    way = jnp.asarray(planted.rotation[0])[None, None]
    items, own = jax.random.split(jax.random.key(0))
    moved, _ = jax.jit(lambda: analysis._moved(planted, names, way, items, own))()
    assert float(moved[0, 0]) == pytest.approx(20, abs=0.1)
