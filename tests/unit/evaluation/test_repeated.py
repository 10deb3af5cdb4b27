"""The prompt, given several times."""

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
from positionbias.evaluation.repeated import Repeat
from positionbias.models.sites import Sites
from positionbias.replicas import Layout, replica_keys, stream
from positionbias.spec import ConfigError
from positionbias.tasks.base import item_keys
from positionbias.tokens import sequential

pytestmark = pytest.mark.usefixtures("no_influence")

RECALL = {"task": "associative_recall(pairs=2, keys=4, values=4, delays=2, shift=0)", "model.position": "rope"}


def test_copies_follow_on_each_other(tiny):
    task = build(tiny(RECALL)).task
    (condition,) = task.conditions()
    tokens = sequential(3, segment=np.array([1, 2, 0], np.int32), position=np.array([4, 5, 7], np.int32))
    found = Repeat(3).tokens_read(tokens, task, condition)
    np.testing.assert_array_equal(found.index, np.arange(9))
    np.testing.assert_array_equal(found.position, [4, 5, 7, 12, 13, 15, 20, 21, 23])
    np.testing.assert_array_equal(found.segment, [1, 2, 0] * 3)
    inputs = jnp.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(Repeat().inputs_read(inputs, task, condition), [[1, 2, 3] * 2, [4, 5, 6] * 2])


def test_a_row_knows_an_input_from_any_copy(tiny):
    """A window of three: the first rows of the last copy see the last of the one before."""
    windowed = ["100011", "110001", "111000", "011100", "001110", "000111"]
    for mask, wanted in (("causal", ["1" * 6] * 6), ("causal & sliding_window(3)", windowed)):
        experiment = build(tiny({**RECALL, "model.mask": mask}))
        (condition,) = experiment.task.conditions()
        rows = Repeat().reach(experiment, condition).astype(int)
        assert ["".join(map(str, row)) for row in rows] == wanted
        own = Repeat().reach(experiment, condition, experiment.task.tokens(condition))
        np.testing.assert_array_equal(own, rows)


def test_ceilings_are_those_of_what_copies_show(tiny):
    """Rows that see no nearer than three places back: the first pair, and all of a copy before."""
    config = tiny({**RECALL, "model.mask": "causal & ~sliding_window(3)"})
    plain, twice = (measured(config, change)[1] for change in (None, "repeat"))
    assert set(np.unique(plain["ceiling"])) > {1.0}
    assert (twice["ceiling"] == 1).all()


def test_the_last_copy_answers(tiny):
    experiment = build(tiny({**RECALL, "train.replicas": 1, "evaluation.items": 8, "evaluation.batch_size": 8}))
    task, (condition,) = experiment.task, experiment.task.conditions()
    graph, state = nnx.split(jax.jit(experiment.initialise)(jax.random.key(3)))
    weights = {"params": jax.tree.map(lambda leaf: leaf[None], state), "frozen": nnx.State({})}
    keys = replica_keys(0, 1)
    rows = Evaluator(experiment, Layout("loop"), keys, intervention=Repeat()).rows(weights)

    @jax.jit
    def read():
        each = item_keys(stream(keys[0], f"evaluation/{condition.stream}"), jnp.arange(8))
        batch = task.batch_of(each, condition)
        inputs = jnp.concatenate([batch.inputs, batch.inputs], axis=1)
        said = nnx.merge(graph, state)(inputs, sequential(inputs.shape[1]), inputs.shape[1], Sites())
        at = batch.query + task.length(condition)
        target = jnp.take_along_axis(batch.targets, batch.query, axis=1)
        given = jax.nn.log_softmax(jnp.take_along_axis(said, at[:, :, None], axis=1))
        return jnp.take_along_axis(given, target[:, :, None], axis=-1).reshape(-1)

    np.testing.assert_allclose(rows["log_probability"], read(), atol=1e-5)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (
            "rebinding",
            "the prompt holds answers, which a copy would give away; allowed: a task whose prompts hold none.",
        ),
        ("associative_recall(pairs=2048, keys=4096)", "times = 2 is not allowed; allowed: at most 1, 8192 rows in all"),
    ],
)
def test_what_cannot_be_repeated_is_refused(task, told):
    task = spec.build("tasks", task, "task")
    with pytest.raises(ConfigError, match=r"^repeat.*: .*" + re.escape(told)):
        Repeat().check(task, task.conditions()[0])


def test_an_objective_that_hides_inputs_is_refused(tiny):
    experiment = build(tiny({**RECALL, "objective": "masked_denoising", "model.mask": "bidirectional"}))
    told = (
        "^repeat: the objective masked_denoising.* hides inputs or orders them anew; allowed: objectives that tell no"
    )
    with pytest.raises(ConfigError, match=told):
        Repeat().model(experiment, experiment.task.conditions()[0])


def test_once_is_no_repetition():
    with pytest.raises(ConfigError, match=r"times = 1 is not allowed; allowed: a whole number from 2 to 8192"):
        spec.build("interventions", "repeat(1)", "x")
