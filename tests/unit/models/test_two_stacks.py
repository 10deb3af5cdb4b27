"""Two stacks: rows say inputs that they have not seen, in whatever order the others were told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.spec import ConfigError

MODEL = {
    "task": "reversal(pairs=6, both=3, begin=True)",
    "objective": "random_order",
    "model.architecture": "two_stacks",
    "model.layers": 4,
    "model.mask": "[by_rank] * 2 + [by_rank(strict=True)] * 2",
    "model.position": "rope",
}


@pytest.fixture
def called(tiny):
    """`called(overrides)`: the experiment, its model and `outputs(batch, shift)`."""

    def make(overrides=None):
        experiment = build(tiny({**MODEL, **(overrides or {})}))
        model = jax.jit(experiment.initialise)(jax.random.key(0))

        @jax.jit
        def outputs(inputs, tokens, shift=0.0):
            return model(inputs, tokens, 0, Sites(edit={"embedding": ("add", jnp.asarray(shift))}))

        return experiment, model, outputs

    return make


def batch_of(experiment, size=3):
    condition = experiment.task.conditions()[0]

    @jax.jit
    def drawn(key, asked):
        batch = experiment.task.batch(key, condition, size)
        made = experiment.objective.prepare(asked, batch, experiment.task, condition)
        return made._replace(tokens=experiment.spread(made.tokens, size))

    return drawn(jax.random.key(1), jax.random.key(2))


def test_a_row_depends_on_what_was_told_before_it_and_on_nothing_else(called):
    experiment, _, outputs = called()
    batch = batch_of(experiment, 5)
    slopes = jax.jit(jax.jacrev(lambda shift: outputs(batch.inputs, batch.tokens, shift).sum(axis=-1)))(
        jnp.zeros((5, 4, 16))
    )
    flow = np.abs(np.asarray(slopes)).max(axis=-1)
    flow = np.stack([flow[i, :, i] for i in range(5)]) > 0
    rank = np.asarray(batch.tokens.rank)
    np.testing.assert_array_equal(flow, rank[:, None, :] < rank[:, :, None])
    (condition, *_) = experiment.task.conditions()
    for i in range(5):
        tokens = jax.tree.map(lambda x, i=i: np.asarray(x[i]), batch.tokens)
        np.testing.assert_array_equal(experiment.reach(condition, tokens), flow[i])


def test_where_inputs_are_stored_does_not_matter(called):
    """Inputs in another place with their positions and ranks give the same outputs there: only these two are read."""
    experiment, _, outputs = called()
    batch = batch_of(experiment)
    order = np.array([2, 0, 3, 1])
    moved = batch.tokens._replace(position=batch.tokens.position[:, order], rank=batch.tokens.rank[:, order])
    found = outputs(batch.inputs[:, order], moved)
    np.testing.assert_allclose(found, outputs(batch.inputs, batch.tokens)[:, order], atol=1e-5)


def test_without_positions_every_row_asks_the_same(called):
    _, _, outputs = called({"model.position": "none"})
    experiment, _, _ = called()
    batch = batch_of(experiment)
    tokens = batch.tokens._replace(rank=jnp.zeros_like(batch.tokens.rank).at[:, 2:].set(1))
    found = np.asarray(outputs(batch.inputs, tokens))
    np.testing.assert_allclose(found[:, 2], found[:, 3], atol=1e-6)
    with_positions = np.asarray(called()[2](batch.inputs, tokens))
    assert np.abs(with_positions[:, 2] - with_positions[:, 3]).max() > 1e-3


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "one_hot"])
def test_schemes_of_embeddings_tell_both_stacks(called, position):
    experiment, _, outputs = called({"model.position": position})
    batch = batch_of(experiment)
    tokens = batch.tokens._replace(rank=jnp.zeros_like(batch.tokens.rank).at[:, 2:].set(1))
    found = np.asarray(outputs(batch.inputs, tokens))
    assert np.abs(found[:, 2] - found[:, 3]).max() > 1e-4


def test_layers_that_ask_share_keys_and_values(called):
    _, model, _ = called()
    first, second = model.asking
    assert second.attention.key is None
    assert second.attention.value is None
    assert first.attention.key is not None
    shapes = [x.shape for x in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert shapes.count((16, 16)) == 2 * 4 + 2 * 2 + 2  # q, k, v, o twice; q, o twice; one k and one v


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.layers": 3, "model.mask": "by_rank"},
            "model.layers = 3 cannot be shared out evenly by the two stacks of two_stacks; allowed: an even number.",
        ),
        (
            {"model.residual": "concatenate"},
            "model.residual: 'concatenate' widens the stream, and two_stacks starts another; allowed: 'add' or 'none'.",
        ),
        (
            {"model.operator": "toy_convolution", "model.position": "none"},
            "model.operator: toy_convolution has no keys for the second stack of two_stacks to ask; allowed:"
            " operators of queries, keys and values.",
        ),
        (
            {"model.mask": "by_rank"},
            "model.mask: by_rank(strict=False) lets row 0 depend on input 0, which can hold the target of that row;"
            " allowed: the architecture 'two_stacks' with masks that read the order, such as '[by_rank,"
            " by_rank(strict=True)]'.",
        ),
    ],
)
def test_refusals(tiny, monkeypatch, overrides, message):
    toys.register(monkeypatch)
    with pytest.raises(ConfigError) as error:
        build(tiny({**MODEL, **overrides}))
    assert str(error.value) == message
