"""The objective protocol, over every registered objective: what is trained, asked and measured of a task's batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.objectives.next_token import CrossEntropy
from positionbias.replicas import Layout
from positionbias.training.auto import Auto
from positionbias.training.program import Program

AXIS = "objectives"
EXAMPLES = {
    "next_token": ["next_token", "next_token(others=0.5)"],
    "masked_diffusion": ["masked_diffusion", "masked_diffusion(answers_only=True)"],
}
# Tasks of one vocabulary: answers in inputs, and in none.
TOKENS = ["reversal(pairs=6, both=3, begin=True)", "associative_recall(pairs=2, keys=4, values=4)"]
VECTORS = ["inverse_permutation_matrix(d=3)"]
MODELS = {
    "bidirectional_causal": {"model.mask": "switch(causal, bidirectional & ~masked_keys)"},
    "random_order": {
        "model.architecture": "two_stacks",
        "model.layers": 2,
        "model.mask": "[by_rank, by_rank(strict=True)]",
    },
}
REFUSED = {("random_order", TOKENS[1])}  # no answer stands in an input there


def tasks(objective):
    names = TOKENS if objective.targets == "tokens" else VECTORS
    return [name for name in names if (objective.spec_name, name) not in REFUSED]


@functools.lru_cache(maxsize=8)
def drawn(task, condition):
    """A batch, which objectives of one task share."""
    return jax.jit(lambda key: task.batch(key, condition, 16))(jax.random.key(3))


@pytest.fixture
def setting(tiny):
    def make(objective, task, **more):
        own = MODELS.get(objective.spec_name, {})
        inputs = "learned" if objective.targets == "tokens" else "vector"
        text = spec.canonical(objective)
        experiment = build(tiny({"task": task, "objective": text, "model.inputs": inputs, **own, **more}))
        condition = experiment.task.conditions()[0]
        return experiment, condition, drawn(experiment.task, condition)

    return make


def modes(experiment, batch):
    """The batch in every mode that a mask may read it in."""
    yield batch
    if experiment.second_share is not None:
        yield batch._replace(tokens=batch.tokens._replace(mode=np.ones(batch.tokens.length, np.int32)))


def check_prepare(setting, objective):
    """Shapes, kinds and where answers stand stay; weights are finite, from 0, and some row weighs."""
    for task in tasks(objective):
        experiment, condition, plain = setting(objective, task)
        for batch in modes(experiment, plain):
            prepared(objective, experiment, condition, batch)


def prepared(objective, experiment, condition, batch):
    """Checks one batch."""
    prepare = jax.jit(lambda key: objective.prepare(key, batch, experiment.task, condition))
    made = prepare(jax.random.key(0))
    for name in batch._fields[:3]:
        before, after = getattr(batch, name), getattr(made, name)
        assert after.shape == before.shape
        assert after.dtype == before.dtype, name
    for name in batch._fields[4:]:
        np.testing.assert_array_equal(getattr(made, name), getattr(batch, name), "where answers stand must stay")
    assert np.isfinite(made.weights).all()
    assert made.weights.min() >= 0
    assert made.weights.max() > 0
    rows = objective.trained_rows(experiment.task, condition)
    if rows is not None:
        assert not np.delete(np.asarray(made.weights), rows, axis=1).any(), "a row that weighs must be trained"
    assert np.isfinite(objective.total(made))
    assert objective.total(made) > 0
    again = prepare(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, made)
    if experiment.task.input.kind == "tokens":
        assert 0 <= made.inputs.min() <= made.inputs.max() < experiment.blueprint.input.size
        says = made.targets[made.weights > 0]
        assert 0 <= says.min() <= says.max() < experiment.task.output.size
    for name in set(made.tokens._fields) - objective.tells:
        before, after = getattr(batch.tokens, name), getattr(made.tokens, name)
        np.testing.assert_array_equal(after, before, "what is told of tokens must be declared")


def check_ask(setting, objective):
    """What is asked needs no draw, leaves targets alone, and no row that answers is told its answer."""
    for task in tasks(objective):
        experiment, condition, batch = setting(objective, task)
        asked = objective.ask(batch, experiment.task, condition)
        rows = np.broadcast_to(objective.rows(batch), batch.query.shape)
        assert rows.min() >= 0
        assert rows.max() < batch.weights.shape[1]
        tokens = experiment.spread(asked.tokens, 16)
        length = experiment.task.context_length(condition)
        if objective.targets != "tokens" or (np.asarray(batch.source) < 0).all():
            continue
        other = batch.inputs.at[jnp.arange(16)[:, None], batch.source].add(1) % experiment.task.input.size
        asked_other = objective.ask(batch._replace(inputs=other), experiment.task, condition)

        def called(inputs, made=experiment.initialise, tokens=tokens, length=length):
            return made(jax.random.key(1))(inputs, tokens, length, Sites())

        call = jax.jit(called)
        found, changed = call(asked.inputs), call(asked_other.inputs)
        at = np.arange(16)[:, None], rows
        np.testing.assert_array_equal(found[at], changed[at], "a row that answers depends on its own answer")


def check_learns(setting, objective):
    """The same losses whole and in pieces, and they fall."""
    for task in tasks(objective)[:1]:
        losses = []
        for microbatch in (64, 16):
            experiment, _, _ = setting(objective, task, **{"train.batch_size": 64})
            program = Program(experiment, Auto(Layout("loop"), microbatch, 90))

            def trained(replica, program=program):
                return program.advance(program.fresh(replica), replica, (), 0)[1]

            metrics = jax.jit(trained)(jax.tree.map(lambda x: x[0], program.replicas()))
            losses.append(np.asarray(metrics["loss"]))
        np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-4)
        assert losses[0][-30:].mean() < losses[0][:30].mean()


CHECKS = [check_prepare, check_ask, check_learns]


@pytest.mark.parametrize("check", CHECKS)
def test_protocol(setting, built, check):
    check(setting, built)


class MovesAnswers(CrossEntropy):
    """Turns the batch around."""

    spec_name = "next_token"

    def prepare(self, key, batch, task, condition):
        return batch._replace(query=batch.query[::-1] + 1)


class TellsTokens(CrossEntropy):
    """Changes tokens and does not say so."""

    spec_name = "next_token"

    def prepare(self, key, batch, task, condition):
        return batch._replace(tokens=batch.tokens._replace(hidden=jnp.ones_like(batch.inputs)))


class WeighsNothing(CrossEntropy):
    """No row counts."""

    spec_name = "next_token"

    def prepare(self, key, batch, task, condition):
        return batch._replace(weights=0 * batch.weights)


class TrainsTooFew(CrossEntropy):
    """Leaves out a row that weighs."""

    spec_name = "next_token"

    def trained_rows(self, task, condition):
        return task.query_rows(condition) + 1


class ReadsTheAnswer(CrossEntropy):
    """Reads an answer where it stands, unhidden."""

    spec_name = "next_token"

    def rows(self, batch):
        return jnp.where(batch.source >= 0, batch.source, batch.query)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (MovesAnswers, check_prepare),
        (TellsTokens, check_prepare),
        (WeighsNothing, check_prepare),
        (TrainsTooFew, check_prepare),
        (ReadsTheAnswer, check_ask),
    ],
)
def test_a_broken_objective_is_caught(setting, monkeypatch, broken, check):
    monkeypatch.setattr(spec, "canonical", lambda built: built.spec_name)
    with pytest.raises(AssertionError):
        check(setting, broken())
