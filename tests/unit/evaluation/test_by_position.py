"""Rows and influence against what they are by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from positionbias import spec
from positionbias.config.build import build
from positionbias.evaluation import by_position
from positionbias.evaluation.by_position import Evaluator, theory_of
from positionbias.models.sites import Sites
from positionbias.replicas import Layout, replica_keys
from positionbias.training.auto import Auto
from positionbias.training.program import Program


def fresh(config):
    experiment = build(config)
    program = Program(experiment, Auto(Layout("loop"), 8, 1))
    return experiment, jax.jit(jax.vmap(program.fresh))(program.replicas())


def called(evaluator, weights, batch):
    """What the first replica's model says to a batch of the first condition."""
    task, (condition, *_) = evaluator.experiment.task, evaluator.conditions

    @jax.jit
    def outputs(weights):
        model = evaluator._model(weights)
        return model(batch.inputs, batch.tokens, task.context_length(condition), Sites())

    return np.asarray(outputs(jax.tree.map(lambda leaf: leaf[0], weights)), np.float64)


# Uniform attention of one head over the rows seen, whose values are `SHARE` times the stream itself.
SHARE = 3.0
LINEAR = {
    "model.heads": 1,
    "model.position": "none",
    "model.norm": "none",
    "model.mlp": False,
    "model.init.query": "constant(value=0.0)",
    "model.init.value": f"identity(scale={SHARE})",
    "model.init.output": "identity",
    "evaluation.influence_items": 12,
    "train.replicas": 1,
}


@pytest.mark.parametrize("tokens", [8, 30, 4096], ids=["one at a time", "three", "all"])
def test_influence_of_a_linear_model_is_the_square_of_its_weights(tiny, monkeypatch, tokens):
    monkeypatch.setattr(by_position, "INFLUENCE_TOKENS", tokens)
    experiment, weights = fresh(tiny(LINEAR))
    found = Evaluator(experiment, Layout("loop"), replica_keys(0, 1)).rows(weights)["influence"]
    expected = np.full(8, SHARE / 8)
    expected[7] += 1  # the residual of the last row, which is the last answer's
    np.testing.assert_allclose(found[0, 0], expected**2 / (expected**2).sum(), rtol=1e-4)


@pytest.mark.parametrize("layout", [Layout("loop", data=2), Layout("vmap", fsdp=2), Layout("loop", 2)], ids=str)
def test_devices_measure_the_same_items_however_they_share_them(tiny, layout):
    """Three chunks of items, of which one of two devices has two; the last chunk holds more than is asked for."""
    experiment, weights = fresh(tiny({"evaluation.items": 40, "evaluation.batch_size": 16}))
    alone, shared = (
        Evaluator(experiment, one, replica_keys(0, 2)).rows(one.place(jax.device_get(weights)))
        for one in (Layout("loop"), layout)
    )
    assert alone.keys() == shared.keys()
    for name, column in alone.items():
        if name in ("log_probability", "influence"):
            np.testing.assert_allclose(shared[name], column, rtol=1e-5)
        else:
            assert np.array_equal(shared[name], column, equal_nan=name == "ceiling"), name


@pytest.mark.parametrize(("layout", "first"), [(Layout("loop"), 24), (Layout("vmap", fsdp=2), 32)], ids=str)
def test_a_large_evaluation_is_several_calls_that_tell_how_far_it_is(tiny, monkeypatch, layout, first):
    """Of five batches of 8 sequences of 8 tokens a call may have four: two have three each, or an even number."""
    more = {"evaluation.items": 36, "evaluation.batch_size": 8, "evaluation.influence_items": 12}
    experiment, weights = fresh(tiny(more))
    weights, told = layout.place(jax.device_get(weights)), []
    whole = Evaluator(experiment, layout, replica_keys(0, 2)).rows(weights)
    monkeypatch.setattr(by_position, "CALL_TOKENS", 8 * 8 * 4)
    parts = Evaluator(experiment, layout, replica_keys(0, 2)).rows(weights, lambda *far: told.append(far))
    assert told == [(first, 48), (36, 48), (48, 48)]
    assert whole.keys() == parts.keys()
    for name, column in whole.items():
        if name in ("log_probability", "influence"):
            np.testing.assert_allclose(parts[name], column, rtol=1e-5)
        else:
            assert np.array_equal(parts[name], column, equal_nan=name == "ceiling"), name


@pytest.mark.usefixtures("no_influence")
def test_losses_of_vectors_are_those_of_the_models_own_outputs(tiny):
    model = {"task": "inverse_permutation_matrix(d=3)", "objective": "squared_error", "model.inputs": "vector"}
    experiment, weights = fresh(tiny({**model, "train.replicas": 1, "evaluation.items": 8}))
    task = experiment.task
    (condition,) = task.conditions()
    batch = jax.jit(lambda key: task.batch(key, condition, 8))(jax.random.key(7))
    evaluator = Evaluator(experiment, Layout("loop"), replica_keys(0, 1), stored={"train": batch})
    rows = evaluator.rows(weights)
    said = called(evaluator, weights, batch)[:, :3]
    lost = ((said - np.asarray(batch.targets)[:, :3]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(rows["loss"], lost.reshape(-1), rtol=1e-4)
    seen = jnp.asarray(experiment.reach(condition))
    floor = jax.jit(jax.vmap(lambda item: task.losses(item, seen)["floor"]))(batch._replace(tokens=None))
    np.testing.assert_allclose(rows["loss/floor"], np.asarray(floor).reshape(-1), rtol=1e-6)


@pytest.mark.usefixtures("no_influence")
@pytest.mark.usefixtures("no_influence")
def test_conditions_that_share_items_are_asked_of_the_same(tiny):
    task = "context_or_prior(subjects=4, relations=1, objects=4, folds=2, documents=3)"
    experiment, weights = fresh(tiny({"task": task, "train.replicas": 1, "evaluation.items": 40}))
    rows = Evaluator(experiment, Layout("loop"), replica_keys(0, 1)).rows(weights)
    assert rows["items"] == ["train", "trained", "trained", "absent", "held_out", "held_out"]
    _, use, ignore, absent, held_out_use, held_out_ignore = rows["evidence_slot"].reshape(6, 40).tolist()
    assert use == ignore
    assert held_out_use == held_out_ignore
    assert use not in (absent, held_out_use)


@pytest.mark.usefixtures("no_influence")
def test_columns_are_those_of_the_models_own_outputs(tiny):
    experiment, weights = fresh(tiny({"train.replicas": 1, "evaluation.items": 20, "evaluation.batch_size": 8}))
    task = experiment.task
    (condition,) = task.conditions()
    batch = jax.jit(lambda key: task.batch(key, condition, 20))(jax.random.key(7))
    # One item needs its first position only: -1 pads, and what is left holds the answer.
    batch = batch._replace(evidence=batch.evidence.at[0, :, 1].set(-1))
    keys = replica_keys(0, 1)
    evaluator = Evaluator(experiment, Layout("loop"), keys, stored={"train": batch})
    rows = evaluator.rows(weights)
    outputs = called(evaluator, weights, batch)
    said = np.take_along_axis(outputs, np.asarray(batch.query)[..., None], axis=1)
    target = np.take_along_axis(np.asarray(batch.targets), np.asarray(batch.query), axis=1)
    log_share = said - np.log(np.exp(said).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_share, target[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(rows["log_probability"], chosen.reshape(-1), atol=1e-4)
    np.testing.assert_array_equal(rows["correct"], (said.argmax(axis=-1) == target).reshape(-1))
    evidence = np.asarray(batch.evidence).copy()
    evidence[0, :, 1] = evidence[0, :, 0]
    np.testing.assert_array_equal(rows["evidence"], evidence[..., 1].reshape(-1))
    for name in ("query", "query_slot", "evidence_slot", "distance", "order"):
        np.testing.assert_array_equal(rows[name], np.asarray(getattr(batch, name)).reshape(-1))
    assert 0 < rows["correct"].mean() < 1


@pytest.mark.usefixtures("no_influence")
def test_items_do_not_depend_on_how_many_are_measured_at_once(tiny, monkeypatch):
    """Nor what an objective hides of them at random, nor the order that an intervention draws."""
    toys.register(monkeypatch)
    task = "associative_recall(pairs=3, keys=3, values=4, delays=2)"
    change = spec.build("interventions", "permute", "test")

    def rows(batch_size):
        more = {"task": task, "objective": "hide_some(token=9)", "evaluation.batch_size": batch_size}
        experiment, weights = fresh(tiny({**more, "train.replicas": 1, "evaluation.items": 20}))
        keys, conditions = replica_keys(0, 1), experiment.task.conditions()[:1]
        return Evaluator(experiment, Layout("loop"), keys, conditions=conditions, intervention=change).rows(weights)

    few, many = rows(7), rows(16)
    for name in ("evidence_slot", "query_slot", "log_probability"):
        np.testing.assert_allclose(few[name], many[name], rtol=1e-4, err_msg=name)


@pytest.mark.usefixtures("no_influence")
@pytest.mark.parametrize(
    "task",
    [
        "associative_recall(pairs=2, keys=4, values=4, delays=2)",
        "set_disjointness(train=[[2, 3], [3, 4]], test=[[2, 3]], vocabulary=64)",
    ],
)
def test_items_may_be_judged_a_few_at_a_time(tiny, monkeypatch, task):
    experiment, weights = fresh(tiny({"task": task, "train.replicas": 1, "evaluation.items": 10}))
    evaluator = Evaluator(experiment, Layout("loop"), replica_keys(0, 1))
    whole = evaluator.rows(weights)
    monkeypatch.setattr(by_position, "JUDGED_TOKENS", 3 * experiment.task.length(experiment.task.conditions()[0]))
    few = Evaluator(experiment, Layout("loop"), replica_keys(0, 1)).rows(weights)
    assert set(whole) == set(few)
    for name, column in whole.items():
        if isinstance(column, np.ndarray):
            np.testing.assert_allclose(few[name], column, rtol=1e-5, atol=1e-6)


def test_theory_speaks_of_every_task_it_knows_and_of_what_the_model_sees(tiny):
    exact = {"task": "inverse_permutation(n=4, alphabet=16)"}
    told = theory_of(build(tiny(exact)))
    assert told["query"] == [(k + 1) / 4 + (1 - (k + 1) / 4) / 16 for k in range(4)]
    assert (told["mean"], set(told)) == (0.625 + 0.375 / 16, {"query", "evidence", "mean"})
    vectors = {"task": "in_context_regression(dimension=2, examples=4)", "objective": "squared_error"}
    told = theory_of(build(tiny({**vectors, "model.inputs": "vector"})))
    assert [one["name"] for one in told["predictions"]] == ["zero", "one_head", "two_heads", "gradient_step", "ridge"]
    assert told["predictions"][0] == {"name": "zero", "of": "loss", "value": 1.1, "exact": True, "condition": "train"}
    told = theory_of(build(tiny({"task": "factual_recall(groups=3, noise=0)", "model.mask": "causal"})))
    assert {one["condition"] for one in told["predictions"]} == {"held_out"}
    told = theory_of(
        build(tiny({"task": "in_context_classification(items=4, burstiness=2)", "model.inputs": "vector"}))
    )
    assert [(one["of"], round(one["value"], 3)) for one in told["predictions"]] == [
        ("accuracy", 0.516),
        ("loss", 0.671),
    ]
    assert theory_of(build(tiny({"task": "associative_recall"}))) == {}
