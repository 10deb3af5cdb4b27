"""The illusion of the paper's toy, exactly; and the parts of a direction in a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.subspace_illusion import PARTS, SubspaceIllusion, parts, read_by
from positionbias.evaluation.loading import load
from positionbias.models import edits
from positionbias.models.sites import Sites


def patched(direction, base, source):
    """The output of the toy h = x (1, 0, 1), y = h (0, 2, 1), with the source's part along a direction in h."""
    hidden = jnp.array([1.0, 0.0, 1.0])
    basis = jnp.asarray(direction, jnp.float32)[None]
    sites = Sites(edit={"hidden": edits.interchange(source * hidden, basis)})
    return float(sites("hidden", base * hidden) @ jnp.array([0.0, 2.0, 1.0]))


def test_the_toy_of_the_paper():
    """Along (1, 1, 0) / sqrt 2 the output becomes the source's, along either part of it nothing happens."""
    base, source = 3.0, -5.0
    assert patched(np.array([1, 1, 0]) / np.sqrt(2), base, source) == pytest.approx(source, abs=1e-5)
    assert patched([1, 0, 0], base, source) == base, "nothing reads it"
    assert patched([0, 1, 0], base, source) == base, "it is always silent"
    assert patched([0, 0, 1], base, source) == pytest.approx(source), "what the model goes by"


def test_the_toy_splits_into_what_is_read_and_what_is_not():
    """With the two parts of y read apart, the row space holds the silent direction and the null space the other."""
    row, null = parts(jnp.array([[0.0, 2, 0], [0, 0, 1]]), jnp.array([1.0, 1, 0]) / np.sqrt(2))
    np.testing.assert_allclose(row, np.array([0, 1, 0]) / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(null, np.array([1, 0, 0]) / np.sqrt(2), atol=1e-6)


@pytest.fixture(scope="module")
def subject(tmp_path_factory, unmeasured_run):
    raw = {
        "name": "illusion",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
        "model": {
            "layers": 1,
            "width": 8,
            "heads": 1,
            "norm": "none",
            "mlp_width": 20,
            "init": {"mlp_out": "fan_in(scale=9.0)"},
        },
        "train": {"steps": 1, "batch_size": 4, "replicas": 1, "log_every": 1},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    }
    run = load(unmeasured_run(raw, tmp_path_factory.mktemp("run")))
    return Subject(run, run.task.conditions()[0], 32)


def test_the_map_is_that_of_the_second_matrix(subject):
    found = jax.jit(lambda: read_by(subject, "layers.0.mlp.hidden", "layers.0.mlp.output"))()
    shapes = [leaf for leaf in jax.tree.leaves(subject.run.weights["params"]) if leaf.shape == (20, 8)]
    assert len(shapes) == 1
    np.testing.assert_allclose(found, shapes[0].T, rtol=1e-4, atol=1e-6)


def test_nothing_reads_the_null_space_and_what_is_read_does_something(subject):
    search = SubspaceIllusion(updates=20)
    found = jax.jit(lambda: search.measure(subject, [0], jax.random.key(0)))()
    effect = dict(zip(PARTS, np.asarray(found["effect"][0]), strict=True))
    assert effect["null_space"] == pytest.approx(0, abs=1e-5)
    assert abs(effect["full"]) > 1e-3
    assert abs(effect["whole"]) > 1e-3
    assert 0 < found["row_norm"][0] < 1
