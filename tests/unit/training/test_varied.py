"""Replicas that differ in hyperparameters are, to the bit, those of runs of their own."""

import dataclasses

import jax
import numpy as np
import pytest

from positionbias.config import varied
from positionbias.config.build import build
from positionbias.config.resolve import VARIED
from positionbias.replicas import Layout
from positionbias.training.auto import Auto
from positionbias.training.program import Program, fetch

pytestmark = pytest.mark.usefixtures("as_users")

GRID = {  # of everything that may vary whatever the task is
    "learning_rate": [0.01, 0.05],
    "weight_decay": [0.0, 0.3],
    "warmup_steps": [0, 3],
    "init_scale": [1.0, 0.7],
    "seed": [5, 6],
}
TASK = "in_context_classification(items=4, dimension=8, classes=8, labels=4, burstiness=2)"
BURSTS = {
    "task": TASK,
    "model.inputs": "vector",
    "train.vary": {"p_bursty": [1.0, 0.3], "p_novel": [0.0, 0.6]},
    "train.replicas": 4,
}


def trained(config, form):
    """Parameters, and losses, after two dispatches of two steps."""
    compiled = Program(build(config), Auto(Layout(form), 4, 2)).compile()
    state, losses = compiled.fresh(), []
    for start in (0, 2):
        state, metrics = compiled.advance(state, start)
        losses.append(fetch(metrics)["loss"])
    return jax.device_get(compiled.unpack(state)["params"]), np.concatenate(losses, axis=1)


def same(one, other, replica, there):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a[replica], b[there])


@pytest.mark.parametrize("form", ["loop", "vmap"])
def test_each_replica_is_that_of_a_run_of_its_own(tiny, form):
    assert GRID.keys() == VARIED.keys()
    config = tiny({"train.vary": GRID, "train.replicas": 32})
    together = trained(config, form)
    assert len(np.unique(together[1][:, -1])) == 32
    for replica in (1, 6, 12, 19, 28):  # of which each value of each hyperparameter is that of one at least
        alone = varied.alone(config, replica)
        assert alone.seed == GRID["seed"][replica % 2]
        two = dataclasses.replace(alone, train=dataclasses.replace(alone.train, replicas=2))
        same(together, trained(two, form), replica, 0)
    chosen = [varied.grid(GRID)[replica] for replica in (1, 6, 12, 19, 28)]
    assert all({one[name] for one in chosen} == set(values) for name, values in GRID.items())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["loop", "vmap"])
def test_so_it_is_where_they_differ_in_what_their_task_draws(tiny, form):
    config = tiny(BURSTS)
    together = trained(config, form)
    for replica in range(4):
        alone = varied.alone(config, replica)
        assert alone.train.vary == {}
        same(together, trained(alone, form), replica, replica)
