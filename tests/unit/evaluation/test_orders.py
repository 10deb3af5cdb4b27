"""Answers made of several orders of the segments: the mean of probabilities, and the order attended to most."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_interventions import measured

from positionbias import spec
from positionbias.config.build import build
from positionbias.evaluation.by_position import Evaluator
from positionbias.evaluation.orders import BestOrder, PermutationAverage
from positionbias.models.sites import Sites
from positionbias.replicas import Layout, replica_keys, stream
from positionbias.spec import ConfigError
from positionbias.tasks.base import item_keys
from positionbias.tokens import sequential

pytestmark = pytest.mark.usefixtures("no_influence")

RECALL = {"task": "associative_recall(pairs=3, keys=3, values=4, delays=2, padding=1, shift=0)", "model.heads": 2}
LAYERS = {
    "model.layers": 2,
    "model.position": "rope",
    "model.init.query": "fan_in(4.0)",
    "model.init.key": "fan_in(4.0)",
}


def folded(change, readings):
    """The readings made one, as an evaluation does."""
    nothing = jax.tree.map(jnp.zeros_like, readings[0])
    join = lambda so_far, one: change.joined(so_far, one[1], jnp.int32(one[0]))  # noqa: E731
    return functools.reduce(join, enumerate(readings), nothing)


def test_probabilities_are_averaged():
    """An order that is sure of 0 and one that is fairly sure of 1: (1 + 0.2) / 2 against (0 + 0.8) / 2."""
    said = [[40.0, 0.0], [0.0, np.log(4.0)]]
    readings = [
        {"given": jnp.array([[one]]), "ceiling": jnp.array([[c]]), "evidence_slot": jnp.array([[slot]])}
        for one, c, slot in zip(said, (0.5, 1.0), (3, 1), strict=True)
    ]
    found = folded(PermutationAverage(2), readings)
    np.testing.assert_allclose(jax.nn.softmax(found["given"])[0, 0], [0.6, 0.4], rtol=1e-6)
    assert float(found["ceiling"][0, 0]) == 1.0
    assert int(found["evidence_slot"][0, 0]) == 3  # where it stands in the item's own order


def test_one_order_is_the_items_own(tiny):
    config = tiny({**RECALL, "model.position": "rope"})
    plain, one = measured(config, None)[1], measured(config, "permutation_average(orders=1)")[1]
    assert not one["order_sensitivity"].any()
    for name in ("evidence_slot", "correct", "ceiling"):
        np.testing.assert_array_equal(one[name], plain[name])
    np.testing.assert_allclose(one["log_probability"], plain["log_probability"], atol=1e-6)
    several = measured(config, "permutation_average(orders=4)")[1]
    assert np.abs(several["log_probability"] - plain["log_probability"]).max() > 1e-3
    np.testing.assert_array_equal(several["evidence_slot"], plain["evidence_slot"])


def test_the_attention_to_a_segment_is_its_mean_over_heads_and_its_sum_over_layers():
    """Segments 0 1 1 2, answered at rows 2 and 3."""
    tokens = sequential(4, segment=np.array([0, 1, 1, 2], np.int32))
    first, second = np.zeros((2, 1, 2, 4, 4))
    first[0, 0, 2:], first[0, 1, 2:] = [0.6, 0.2, 0.1, 0.1], [0.5, 0.0, 0.1, 0.4]
    second[0, :, 2], second[0, :, 3] = [0.4, 0.0, 0.0, 0.6], [0.0, 0.3, 0.5, 0.2]
    found = BestOrder().merit({"a": jnp.array(first), "b": jnp.array(second)}, tokens, jnp.array([[2, 3]]))
    np.testing.assert_allclose(found, [max(0.3 / 2 + 0.1 / 2 + 0.8 / 2, 0.1 / 2 + 0.4 / 2 + 0.8 / 2)], rtol=1e-6)


def test_every_item_keeps_its_own_order_and_of_equal_ones_the_first():
    readings = [
        {"merit": jnp.array(merit), "slot": jnp.full((3, 1), n)} for n, merit in enumerate(([1.0, 2, 5], [2.0, 2, 4]))
    ]
    np.testing.assert_array_equal(folded(BestOrder(2), readings)["slot"][:, 0], [1, 0, 0])


def test_items_are_measured_in_the_order_that_is_attended_to_most(tiny):
    """Against the same orders read one by one."""
    experiment = build(
        tiny({**RECALL, **LAYERS, "train.replicas": 1, "evaluation.items": 8, "evaluation.batch_size": 8})
    )
    task, (condition,) = experiment.task, experiment.task.conditions()
    model, change, keys = jax.jit(experiment.initialise)(jax.random.key(3)), BestOrder(3), replica_keys(0, 1)
    graph, state = nnx.split(model)
    weights = {"params": jax.tree.map(lambda leaf: leaf[None], state), "frozen": nnx.State({})}
    rows = Evaluator(experiment, Layout("loop"), keys, intervention=change).rows(weights)

    @jax.jit
    def read(number):
        each = item_keys(stream(keys[0], f"evaluation/{condition.stream}"), jnp.arange(8))
        batch = task.batch_of(each, condition)
        one = lambda key, item: change.reading(stream(key, "intervention"), number, item, task, condition)  # noqa: E731
        moved = jax.vmap(lambda key, item: one(key, item._replace(tokens=batch.tokens)))(
            each, batch._replace(tokens=None)
        )
        sites = Sites(["layers.*.attention.pattern"])
        said = nnx.merge(graph, state)(moved.inputs, moved.tokens, task.context_length(condition), sites)
        total = 0.0
        for pattern in sites.recorded.values():
            total += jnp.take_along_axis(pattern.mean(1), moved.query[:, :, None], axis=1)[:, 0]
        share = [jnp.sum(total * (moved.tokens.segment == s), axis=-1) for s in (1, 2, 3)]
        answer = jnp.take_along_axis(said, moved.query[:, :, None], axis=1)[:, 0]
        return jnp.max(jnp.stack(share), axis=0), moved.evidence_slot[:, 0], jnp.argmax(answer, axis=-1)

    merit, slot, _ = (np.stack(one) for one in zip(*(read(n) for n in range(3)), strict=True))
    best = merit.argmax(axis=0)
    assert len(set(best)) > 1
    np.testing.assert_array_equal(rows["evidence_slot"], slot[best, np.arange(8)])


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("best_order", {"model.architecture": "looped(2)"}, "is not that of one stack; allowed: decoder_only."),
        (
            "permutation_average",
            {"task": "in_context_regression", "objective": "squared_error", "model.inputs": "vector"},
            "has answers that are vectors, which have no probabilities; allowed: one whose answers are tokens.",
        ),
    ],
)
def test_what_cannot_be_read_so_is_refused(tiny, text, overrides, told):
    experiment = build(tiny({**RECALL, "model.position": "rope", **overrides}))
    change, condition = spec.build("interventions", text, "x"), experiment.task.conditions()[0]
    with pytest.raises(ConfigError, match=f"^{text}: .*" + re.escape(told)):
        change.model(experiment, condition)


@pytest.mark.parametrize("text", ["permutation_average(0)", "best_order(orders=1025)"])
def test_numbers_of_orders_out_of_range_are_refused(text):
    with pytest.raises(ConfigError, match=r"orders = .* is not allowed; allowed: a whole number from 1 to 1024"):
        spec.build("interventions", text, "--interventions")
