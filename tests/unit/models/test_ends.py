"""The ends of a model beside a position scheme that keeps features of the stream for itself."""

import dataclasses

import jax
import numpy as np
import pytest

from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.positions.additive import OneHot
from positionbias.spec import ConfigError

TOKENS = {"task": "inverse_permutation(n=4, alphabet=4)"}  # vocabulary 8, 8 positions
VECTORS = {"task": "in_context_regression(dimension=2, examples=4)", "objective": "squared_error"}
INPUTS = {
    "learned": {**TOKENS, "model.inputs": "learned", "model.width": 14},
    "one_hot": {**TOKENS, "model.inputs": "one_hot", "model.width": 16},
    "vector": {**VECTORS, "model.inputs": "vector", "model.width": 20},
    "identity": {**VECTORS, "model.inputs": "identity"},
}


class Uncoded(OneHot):
    """Keeps features and leaves them as they come."""

    def embed(self, x, tokens, params):
        return x


def parts(experiment):
    """A batch of two, its embeddings and the outputs of a fresh model."""
    condition = experiment.task.conditions()[0]
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 2))(jax.random.key(1))

    def called(key):
        sites = Sites(record=["embedding"])
        context = experiment.task.context_length(condition)
        outputs = experiment.initialise(key)(batch.inputs, batch.tokens, context, sites)
        return sites.recorded["embedding"], outputs

    return batch, *jax.tree.map(np.asarray, jax.jit(called)(jax.random.key(0)))


def widened(tiny, inputs):
    """A config whose stream has room for one-hot positions, whatever the inputs."""
    changes = {**INPUTS[inputs], "model.position": "one_hot"}
    if inputs == "identity":  # the stream is as wide as inputs and positions
        known = build(tiny({**INPUTS["vector"], "model.width": 64})).blueprint
        changes["model.width"] = known.input.size + known.length
    changes["model.heads"] = 1
    return tiny(changes)


@pytest.mark.parametrize("inputs", INPUTS)
def test_positions_stand_in_the_last_features_and_inputs_before_them(tiny, inputs):
    experiment = build(widened(tiny, inputs))
    blueprint = experiment.blueprint
    slots, width = blueprint.length, blueprint.config.width
    batch, embedding, outputs = parts(experiment)
    length = batch.tokens.length
    code = np.zeros((length, slots))
    code[np.arange(length), slots - 1 - np.arange(length)] = 1
    np.testing.assert_array_equal(embedding[..., width - slots :], np.broadcast_to(code, (2, length, slots)))
    content = embedding[..., : width - slots]
    assert content.any()
    if inputs == "identity":
        np.testing.assert_array_equal(content, batch.inputs)
    if inputs == "one_hot":
        np.testing.assert_array_equal(content, np.eye(8)[np.asarray(batch.inputs)])
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("inputs", INPUTS)
def test_the_last_features_are_zero_before_the_code(tiny, inputs):
    known = build(widened(tiny, inputs))
    blueprint = known.blueprint
    idle = dataclasses.replace(blueprint, positions=(Uncoded(),) * len(blueprint.positions))
    _, embedding, _ = parts(dataclasses.replace(known, blueprint=idle))
    _, coded, _ = parts(known)
    before = blueprint.config.width - blueprint.length
    np.testing.assert_array_equal(embedding[..., :before], coded[..., :before])
    assert (embedding[..., before:] == 0).all()
    assert (coded[..., before:].sum(-1) == 1).all()


def test_the_token_table_is_narrower_than_the_stream(tiny):
    experiment = build(widened(tiny, "learned"))
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    assert model.embedding.table.shape == (8, 14 - 8)
    assert len(model.embedding.params) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {**INPUTS["learned"], "model.readout": "tied"},
            "model.readout: 'tied' needs a token table as wide as the stream, of which the position scheme one_hot has"
            " 8 features for itself; allowed: linear, mlp.",
        ),
        (
            {**INPUTS["one_hot"], "model.width": 18},
            "model.width = 18 does not fit model.inputs = 'one_hot'; allowed: 16, the size of the task's inputs and 8"
            " of the position scheme one_hot.",
        ),
        (
            {**INPUTS["learned"], "model.width": 8},
            "model.position: one_hot needs a feature of the stream for each of 8 positions and some for the inputs, got"
            " model.width = 8; allowed: whole numbers from 9.",
        ),
        (
            {**INPUTS["learned"], "model.position": "one_hot(slots=7)"},
            "model.position: one_hot.slots = 7 does not fit 8 positions and model.width = 14; allowed: None or a whole"
            " number from 8 to 13.",
        ),
        (
            {**INPUTS["learned"], "model.position": "[rope, one_hot]", "model.layers": 2},
            "model.position: one_hot of layer 1 acts on the embeddings, which only layer 0 reads; allowed there: a"
            " scheme that rotates, biases or does nothing.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tiny, changes, message):
    experiment = {"model.position": "one_hot", "model.heads": 1, **changes}
    with pytest.raises(ConfigError) as error:
        build(tiny(experiment))
    assert str(error.value) == message


def test_identity_inputs_need_the_width_of_inputs_and_positions(tiny):
    config = widened(tiny, "identity")
    right = config.model.width
    wrong = tiny({**INPUTS["identity"], "model.position": "one_hot", "model.heads": 1, "model.width": right + 1})
    with pytest.raises(ConfigError) as error:
        build(wrong)
    content = build(config).blueprint.input.size
    assert str(error.value) == (
        f"model.width = {right + 1} does not fit model.inputs = 'identity'; allowed: {right}, the size of the task's"
        f" inputs and {right - content} of the position scheme one_hot."
    )
