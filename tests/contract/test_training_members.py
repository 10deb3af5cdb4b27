"""Every registered objective, architecture, initializer, update rule, schedule, theory and intervention keeps its
protocol.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from positionbias import spec
from positionbias.config import schema
from positionbias.config.build import build
from positionbias.evaluation.interventions import Intervention
from positionbias.models.base import Architecture
from positionbias.models.parameters import Initializer, Noise
from positionbias.objectives.base import Objective
from positionbias.positions.base import Matrix
from positionbias.tasks.associative_recall import AssociativeRecall
from positionbias.theory.base import Theory
from positionbias.training.optimizer import Rule, Schedule, rate_share, transformation

PROTOCOLS = {
    "architectures": Architecture,
    "initializers": Initializer,
    "interventions": Intervention,
    "objectives": Objective,
    "optimizers": Rule,
    "schedules": Schedule,
    "theory": Theory,
}
EXAMPLES = {
    "looped": {"architectures": "looped(loops=2)"},
    "constant": {"initializers": "constant(value=0.3)"},
    "normal": {"initializers": "normal(std=0.3)"},
}


def members(axis):
    return [EXAMPLES.get(name, {}).get(axis, name) for name in spec.names(axis)]


EVERY = [(axis, text) for axis in PROTOCOLS for text in members(axis)]


@pytest.mark.parametrize(("axis", "text"), EVERY)
def test_members_are_built_from_text_and_told_as_text(axis, text):
    built = spec.build(axis, text, axis)
    assert isinstance(built, PROTOCOLS[axis])
    assert spec.build(axis, spec.canonical(built), axis) == built
    assert hash(built) == hash(spec.build(axis, text, axis))
    assert (type(built).__doc__ or "").strip()


def test_every_axis_has_a_contract():
    elsewhere = {"analyses", "assignments", "masks", "positions", "operators", "tasks"}
    assert set(spec.axes()) == set(PROTOCOLS) | elsewhere, "write a contract for the new axis, and name it here"


@pytest.mark.parametrize("text", members("initializers"))
def test_initializers_fill_their_shape(text):
    built = spec.build("initializers", text, "init")
    value = built(Noise(jax.random.normal(jax.random.key(0), (72,))), Matrix((6, 12), "query", 6))
    assert value.shape == (6, 12)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all()
    assert np.abs(value).max() > 0


@pytest.mark.parametrize("text", members("schedules"))
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_shares_of_the_peak(text, warmup):
    schedule = spec.build("schedules", text, "schedule")
    shares = np.array([rate_share(schedule, warmup, 20, jnp.int32(s)) for s in range(20)])
    assert shares.min() >= 0
    assert shares.max() == pytest.approx(1)
    assert shares[warmup] == pytest.approx(1)


@pytest.mark.parametrize("text", members("optimizers"))
def test_rules_go_downhill_and_decay_weights(text):
    rule = spec.build("optimizers", text, "optimizer")
    gradient, value = jnp.array([1.0, -2.0]), jnp.array([3.0, 4.0])
    for decay in (0.0, 0.5):
        tx = transformation(schema.Optimizer(), rule, decay)
        direction, _ = tx.update(gradient, tx.init(value), value)
        if not decay:
            assert (np.sign(direction) == np.sign(gradient)).all()
            plain = direction
    np.testing.assert_allclose(direction - plain, 0.5 * value, rtol=1e-6)


@pytest.mark.parametrize("text", members("interventions"))
def test_interventions_leave_the_right_answer_and_what_it_needs(text):
    task = AssociativeRecall(pairs=4, keys=4, delays=3, padding=1, shift=0)
    (condition,) = task.conditions()
    change = spec.build("interventions", text, "intervention")
    change.check(task, condition)

    @jax.jit
    def both(key, number):
        before = task.sample(key, condition)
        return before, change.reading(key, number, before, task, condition)

    moved = False
    for seed in range(8):
        found = both(jax.random.key(seed), jnp.int32(seed % 2 * (change.readings - 1)))
        before, after = jax.device_get(found)
        row, was = int(after.query[0]), int(before.query[0])
        assert after.targets[row] == before.targets[was]
        assert after.weights[row] == before.weights[was]
        np.testing.assert_array_equal(after.inputs[after.evidence], before.inputs[before.evidence])
        assert after.inputs[row - after.distance[0]] == before.inputs[was - before.distance[0]]
        np.testing.assert_array_equal(np.sort(after.inputs), np.sort(before.inputs))
        np.testing.assert_array_equal(after.tokens.index, before.tokens.index)
        assert np.max(after.tokens.position) - np.max(before.tokens.position) <= change.farther()
        moved |= not all(
            np.array_equal(a, b) for a, b in zip((*after, *after.tokens), (*before, *before.tokens), strict=True)
        )
    assert moved == (change.moves or change.only_told)


@pytest.mark.parametrize("text", members("interventions"))
def test_interventions_change_who_reads_or_what_and_tell_what_is_reached(text, tiny):
    needs = {"hard_lookahead": {"model.operator": "lookahead(most=2)", "model.mask": "bidirectional"}}.get(text, {})
    recall = "associative_recall(pairs=4, keys=4, delays=3, shift=0)"
    experiment = build(tiny({"task": recall, "model.position": "rope", **needs}))
    task, (condition,) = experiment.task, experiment.task.conditions()
    change = spec.build("interventions", text, "intervention")
    changed = change.model(experiment, condition)
    for one in (experiment, changed):  # the parameters are those of the run
        shapes = [(path, leaf.shape) for path, leaf in jax.tree.leaves_with_path(nnx.state(one.abstract))]
        assert shapes == [
            (path, leaf.shape) for path, leaf in jax.tree.leaves_with_path(nnx.state(experiment.abstract))
        ]
    length = task.length(condition)
    inputs = change.inputs_read(jnp.arange(2 * length).reshape(2, length), task, condition)
    tokens = change.tokens_read(task.tokens(condition), task, condition)
    assert inputs.shape == (2, tokens.length)
    np.testing.assert_array_equal(inputs[0, -length:], np.arange(length))  # what is in front is in front
    np.testing.assert_array_equal(tokens.index, np.arange(tokens.length))
    assert change.reach(changed, condition).shape == (length, length)
    made = [changed is not experiment, tokens.length > length, change.moves, change.only_told]
    assert any(made)
    assert change.readings == 1 or change.moves


@pytest.mark.parametrize("text", members("objectives"))
def test_objectives_are_least_where_the_answer_is_right(text):
    objective = spec.build("objectives", text, "objective")
    if objective.targets == "tokens":
        targets, good = jnp.array([[2, 0]]), 9 * jax.nn.one_hot(jnp.array([[2, 0]]), 4)
        bad = 9 * jax.nn.one_hot(jnp.array([[1, 3]]), 4)
    else:
        targets = jnp.array([[[0.0, 1], [1, 1]]])
        good, bad = targets + 0.01, 1 - targets
    assert objective.losses(good, targets).shape == (1, 2)
    assert (objective.losses(good, targets) < objective.losses(bad, targets)).all()
    assert objective.right(good, targets).all()
    assert not objective.right(bad, targets).any()
    assert (objective.log_probability(good, targets) > objective.log_probability(bad, targets)).all()
