"""Masks that switch: batches are drawn into a mode in training, and read in the first when they are measured."""

import jax
import numpy as np
import pytest

from positionbias.config.build import build
from positionbias.evaluation.by_position import Evaluator
from positionbias.replicas import Layout, replica_keys
from positionbias.spec import ConfigError
from positionbias.training.auto import Auto
from positionbias.training.program import Program

TASK = "associative_recall(pairs=2, keys=4, values=4)"


def drawn(experiment):
    """A batch, by one program."""
    condition = experiment.task.conditions()[0]
    return jax.jit(lambda key: experiment.task.batch(key, condition, 4))(jax.random.key(0))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_batches_is_read_in_the_second_mode(tiny, share):
    experiment = build(tiny({"task": TASK, "model.mask": f"switch(causal, bidirectional, {share})"}))
    batch = drawn(experiment)
    trained = jax.jit(jax.vmap(lambda key: experiment.trained(key, batch).tokens.mode))
    modes = np.asarray(trained(jax.random.split(jax.random.key(1), 800)))
    assert (modes == modes[:, :1]).all(), "a batch has one mode"
    assert abs(modes[:, 0].mean() - share) < 5 * np.sqrt(share * (1 - share) / 800) + 1e-9
    assert experiment.shared_tokens


def test_one_that_does_not_switch_is_never_drawn(tiny):
    experiment = build(tiny({"task": TASK}))
    batch = drawn(experiment)
    assert experiment.second_share is None
    assert (np.asarray(jax.jit(experiment.trained)(jax.random.key(0), batch).tokens.mode) == 0).all()


def test_the_second_mode_trains_and_the_first_is_measured(tiny, no_influence):
    """With share 1 gradients are those of the second mask, and rows those of the first."""
    found = {}
    for mask in ("causal", "bidirectional", "switch(causal, bidirectional, 1.0)"):
        experiment = build(tiny({"task": TASK, "model.mask": mask, "train.replicas": 1}))
        program = Program(experiment, Auto(Layout("loop"), 8, 1))
        state = jax.jit(jax.vmap(program.fresh))(program.replicas())
        one = jax.tree.map(lambda x: x[0], state)
        _, metrics = jax.jit(lambda s, p=program: p._gradient(s, jax.random.key(5), ()))(one)
        weights = {"params": state["params"], "frozen": state["frozen"]}
        rows = Evaluator(experiment, Layout("loop"), replica_keys(0, 1), items=16).rows(weights)
        found[mask] = float(metrics["loss"]), rows["log_probability"]
    causal, both, switch = found.values()
    assert switch[0] == pytest.approx(both[0], rel=1e-5)
    assert abs(switch[0] - causal[0]) > 1e-4
    np.testing.assert_allclose(switch[1], causal[1], atol=1e-5)
    assert np.abs(switch[1] - both[1]).max() > 1e-4


def test_tokens_of_each_example_are_drawn_alike(tiny):
    task = "set_disjointness(train=[[2, 3], [3, 4]], test=[[2, 3]], vocabulary=64)"
    experiment = build(tiny({"task": task, "model.mask": "switch(causal, bidirectional)"}))
    batch = drawn(experiment)
    assert jax.jit(experiment.trained)(jax.random.key(1), batch).tokens.mode.shape == batch.tokens.index.shape
    program = Program(experiment, Auto(Layout("loop"), 4, 1))
    state = jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(program.fresh))(program.replicas()))
    _, metrics = jax.jit(lambda s: program._gradient(s, jax.random.key(5), ()))(state)
    assert np.isfinite(metrics["loss"])


def test_two_shares_in_one_model_are_refused(tiny):
    mask = "[switch(causal, bidirectional, 0.25), switch(causal, bidirectional, 0.5)]"
    with pytest.raises(ConfigError) as error:
        build(tiny({"task": TASK, "model.layers": 2, "model.mask": mask}))
    assert str(error.value) == (
        "model.mask: share = 0.25 of one switch and share = 0.5 of another are not allowed together; allowed: the same"
        " share for all, as a batch is read in one mode."
    )


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_second_mode_may_not_leak_either(tiny, share):
    mask = f"switch(causal, bidirectional, {share})"
    with pytest.raises(ConfigError, match="lets row 2 depend on input 3, which can hold the target"):
        build(tiny({"task": "reversal(pairs=4, both=2, begin=True)", "model.mask": mask}))
