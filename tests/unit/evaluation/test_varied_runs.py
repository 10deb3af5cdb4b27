"""Runs whose replicas differ in hyperparameters, beside a run of one combination's own: files, loading, measuring."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import toys

from positionbias.analysis import run as asking
from positionbias.config import varied
from positionbias.config.build import build
from positionbias.evaluation import again
from positionbias.evaluation.loading import load
from positionbias.evaluation.rows import columns, read_rows
from positionbias.spec import ConfigError
from positionbias.tasks.base import world_of
from positionbias.training.loop import train

pytestmark = pytest.mark.usefixtures("no_influence")

GRID = {"init_scale": [1.0, 0.5], "wrong": [0.0, 0.4]}
RUMOURS = {"task": "rumours", "model.position": "none", "train.steps": 4, "evaluation.items": 64}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toys.register(monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("varied")


@pytest.fixture
def both(tiny, home):
    """The folder of a run of the grid, and of one in which all replicas are as its last."""
    config = tiny({**RUMOURS, "train.vary": GRID, "train.replicas": 4})
    for name, one in (("grid", config), ("alone", varied.alone(config, 3))):
        if not (home / name).exists():
            assert train(one, home / name, [], lambda line: None).status == "finished"
    return home / "grid", home / "alone"


def equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_of_its_own_has_the_values_in_their_fields(tiny):
    config = tiny({**RUMOURS, "train.vary": {**GRID, "weight_decay": [0.5], "seed": [7, 9]}, "train.replicas": 8})
    alone = varied.alone(config, 5)
    assert (alone.model.init_scale, alone.task, alone.seed) == (0.5, "rumours(letters=4, numbers=64, wrong=0.0)", 9)
    assert alone.optimizer.name == "adamw(b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.5)"
    assert alone.train == dataclasses.replace(config.train, vary={})
    assert varied.combinations(config.train.vary)[2] == (
        {"weight_decay": 0.5, "init_scale": 0.5, "wrong": 0.0},
        [4, 5],
    )


def test_metrics_and_answers_are_those_of_a_run_of_its_own(both):
    lines, others = ([json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()] for path in both)
    for line, other in zip(lines, others, strict=True):
        assert all(line[name][3] == other[name][3] for name in ("loss", "accuracy", "gradient_norm"))
        assert len(set(line["loss"])) == 4
    for step in ("000000", "000004"):
        rows, own = (read_rows(path / "evals" / f"{step}.npz") for path in both)
        chosen = {name: column[rows["replica"] == 3] for name, column in columns(rows).items()}
        equal(chosen, {name: column[own["replica"] == 3] for name, column in columns(own).items()})
        assert [set(rows["baseline/order_free"][rows["replica"] == r]) for r in (0, 1)] == [{1.0}, {np.float32(0.6)}]


def test_a_replica_has_its_own_task_and_its_own_start(both):
    whole, (together, alone) = load(both[0], replica="all"), (load(path, replica=3) for path in both)
    assert together.task == alone.task == dataclasses.replace(together.task, wrong=0.4)
    batch, own = whole.sample(64), alone.sample(64)
    assert batch.targets.shape == (4, 64, 1)
    equal(batch.targets[3], own.targets)
    equal(together.sample(64), own)
    drawn, untrained = whole.untrained(), alone.untrained()
    equal(jax.tree.map(lambda x: x[3], drawn), untrained)
    assert not np.array_equal(*(jax.tree.leaves(drawn)[0][r] for r in (0, 2)))
    equal(whole.chosen([3]).own, {"init_scale": np.float32([0.5]), "task": {"wrong": np.float32([0.4])}})


def test_another_task_is_the_same_for_all_unless_told_otherwise(both):
    text = "rumours(wrong=1.0)"
    told, own = (load(both[0], replica="all", task=text, vary=vary) for vary in (False, True))
    number, batch = np.asarray(world_of(told.task, told.keys[1])["number"]), told.sample(64)
    equal(batch.targets[1], number[(np.asarray(batch.inputs)[1] + 1) % 4])
    equal(own.own["task"]["wrong"], np.float32([0.0, 0.4, 0.0, 0.4]))
    assert told.own["task"] == {}


def test_measuring_again_tells_combinations(both):
    found, own = (next(again.Measurer(path, again.variants(None, None)).measured(io.StringIO())) for path in both)
    equal(found.rows["correct"][found.rows["replica"] == 3], own.rows["correct"][own.rows["replica"] == 3])
    assert [one["values"] for one in found.summary["combinations"]] == varied.grid(GRID)
    assert own.summary["combinations"] == []


def test_of_many_replicas_a_few_are_named(both, monkeypatch):
    monkeypatch.setattr(asking, "TOLD", 2)  # there may be thousands
    with pytest.raises(ConfigError, match=r"^--replicas: 0,1 and 2 more differ in init_scale and wrong; allowed: "):
        asking._asked_of(load(both[0], replica="all"), None)


def test_an_analysis_asks_the_replicas_of_one_combination(both):
    whole = load(both[0], replica="all")
    told = (
        r"^--replicas: 0,1,2,3 differ in init_scale and wrong; allowed: .* such as 0 with init_scale=1.0, wrong=0.0\.$"
    )
    with pytest.raises(ConfigError, match=told):
        asking._asked_of(whole, None)
    one = asking._asked_of(whole, [3])
    assert (one.task.wrong, one.own["task"], len(one.keys)) == (0.4, {}, 1)


def test_values_that_change_the_layout_are_refused(tiny):
    fields = {"task": "in_context_classification", "model.inputs": "vector"}
    told = r"^train.vary.p_novel: 1.0 gives the task other conditions or tokens than 0.0, which task has; allowed: "
    with pytest.raises(ConfigError, match=told):
        build(tiny({**fields, "train.vary": {"p_novel": [0.5, 1]}}))
