"""What an interchanged stream does, against models whose answers are known to be in it or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.shared_structure import SharedStructure
from positionbias.errors import ConfigError
from positionbias.evaluation.loading import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory, unmeasured_run):
    raw = {
        "name": "shared",
        "task": "associative_recall(pairs=3, keys=4, values=8, delays=2, shift=3)",
        "model": {"layers": 2, "width": 16, "heads": 1, "position": "rope"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 60, "batch_size": 32, "replicas": 1, "log_every": 60},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    }
    return unmeasured_run(raw, tmp_path_factory.mktemp("run"))


def test_the_last_stream_is_followed_and_the_count_is_of_pairs_that_differ(folder):
    run = load(folder)
    subject = Subject(run, run.task.conditions()[0], 64)
    found = jax.jit(lambda: SharedStructure().measure(subject, [0, 1], jax.random.key(0)))()
    assert 0.2 < float(found["pairs"]) < 1
    assert found["across"][1] == found["within"][1] == 1
    assert found["elsewhere"][1] < 0.9, "a random row mostly says something else"
    assert (np.asarray(found["across"]) <= 1).all()


def test_a_model_that_says_one_thing_whatever_it_reads_has_no_pairs(folder):
    run = load(folder)
    nothing = jax.tree.map(jnp.zeros_like, run.weights)  # all logits are 0, and the first token is said
    silent = Subject(dataclasses.replace(run, weights=nothing), run.task.conditions()[0], 8)
    found = jax.jit(lambda: SharedStructure().measure(silent, [0, 1], jax.random.key(0)))()
    assert all((np.asarray(x) == 0).all() for x in found.values())


def test_the_other_condition_is_never_the_one_that_is_asked(folder):
    run = load(folder)
    grid = run.task.conditions()
    for asked in grid:
        expected = grid[-1] if asked != grid[-1] else grid[-2]
        assert SharedStructure()._other(Subject(run, asked, 8)) == expected


def test_what_has_no_other_condition_is_refused(folder, monkeypatch):
    run = load(folder)
    first = run.task.conditions()[0]
    with pytest.raises(ConfigError, match="other: unknown condition 'shift', did you mean 'shifted'"):
        SharedStructure(other="shift").check(Subject(run, first, 8))
    with pytest.raises(ConfigError, match=f"other = {first.name!r} is not allowed; allowed: another condition than"):
        SharedStructure(other=first.name).check(Subject(run, first, 8))
    monkeypatch.setattr(type(run.task), "conditions", lambda task: (first,))
    with pytest.raises(ConfigError, match="has one; allowed: a task with two or more"):
        SharedStructure().check(Subject(run, first, 8))
