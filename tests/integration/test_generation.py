"""Runs that were trained, loaded from their folders, and made to generate."""

import jax
import numpy as np
import pytest

import positionbias
from positionbias.spec import ConfigError
from positionbias.training.loop import train

pytestmark = [pytest.mark.usefixtures("no_influence")]

RUNS = {
    "next_token": {"model.mask": "causal"},
    "masked_diffusion": {"model.mask": "bidirectional"},
    "random_order": {
        "model.architecture": "two_stacks",
        "model.layers": 2,
        "model.mask": "[by_rank, by_rank(strict=True)]",
    },
}
METHODS = {"next_token": "autoregressive", "masked_diffusion": "diffusion", "random_order": "any_order"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(tiny, folder):
    """`trained(objective)`: the folder of a run that has just begun to learn reversal."""

    def make(objective):
        overrides = {
            "task": "reversal(pairs=6, both=3, begin=True)",
            "objective": objective,
            "model.position": "rope",
            "train.steps": 20,
            "evaluation.items": 8,
        }
        train(
            tiny({**overrides, **RUNS[objective]}), folder / objective, [], lambda line: None
        )  # a second time, nothing
        return folder / objective

    return make


@pytest.mark.parametrize("objective", RUNS)
def test_the_first_answer_is_what_evaluation_reads(trained, objective):
    folder = trained(objective)
    run = positionbias.load(folder)
    batch = run.sample(6)
    prompt, rows = np.asarray(batch.inputs[:, :3]), run.experiment.objective.rows(batch)
    outputs = np.take_along_axis(np.asarray(run.apply(batch)[0]), np.asarray(rows)[:, :, None], axis=1)
    found = run.generate(prompt, 1, method=METHODS[objective])
    assert found.tokens.shape == (6, 4)
    np.testing.assert_array_equal(found.tokens[:, :3], prompt)
    np.testing.assert_array_equal(found.tokens[:, 3:], outputs.argmax(axis=-1))
    np.testing.assert_allclose(found.outputs, outputs, rtol=0, atol=1e-4)

    longer = run.generate(prompt, 4, key=jax.random.key(0), temperature=1.0)
    assert longer.tokens.shape == (6, 7)
    assert longer.log_probability.shape == (6, 4)
    assert int(longer.tokens.max()) < run.task.output.size

    everyone = positionbias.load(folder, replica="all").generate(prompt, 1)
    assert everyone.tokens.shape == (2, 6, 4)
    np.testing.assert_array_equal(everyone.tokens[0], found.tokens)

    other = next(method for method in METHODS.values() if method != METHODS[objective])
    with pytest.raises(ConfigError, match=rf"^method: {other!r} is not what the objective .* trains; allowed: "):
        run.generate(prompt, 1, method=other)


def test_the_likelihood_of_an_answer_is_what_the_model_says(trained):
    folder = trained("masked_diffusion")
    run = positionbias.load(folder)
    batch = run.sample(6)
    prompt, answer = np.asarray(batch.inputs[:, :3]), np.asarray(batch.targets[:, 2:3])
    said = jax.nn.log_softmax(run.apply(batch)[0][:, 3])
    found = run.log_likelihood(prompt, answer, jax.random.key(0))
    np.testing.assert_allclose(found, np.take_along_axis(np.asarray(said), answer, axis=-1)[:, 0], atol=1e-4)
    both = positionbias.load(folder, replica="all").log_likelihood(prompt, answer, jax.random.key(0))
    np.testing.assert_allclose(both[0], found, atol=1e-5)
