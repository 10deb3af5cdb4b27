"""Tokens in any order: with keys and values kept as by the whole forward pass of the same ranks."""

import jax
import numpy as np
import pytest

from positionbias.generation.any_order import counts, rows
from positionbias.generation.generate import _merged, generate
from positionbias.models.sites import Sites
from positionbias.spec import ConfigError

MODEL = {
    "task": "reversal(pairs=6, both=3, begin=True)",  # a vocabulary of 15, whose answers stand in inputs
    "objective": "random_order",
    "model.architecture": "two_stacks",
    "model.layers": 4,
    "model.mask": "[by_rank] * 2 + [by_rank(strict=True)] * 2",
    "model.position": "rope",
}
PROMPT = np.random.default_rng(0).integers(0, 14, (3, 4))


@pytest.fixture
def model(fresh):
    """`model(overrides)`: as `fresh`, of `MODEL`."""
    return lambda overrides=None: fresh({**MODEL, **(overrides or {})})


@pytest.mark.parametrize(
    ("overrides", "how"),
    [
        ({}, {}),
        ({}, {"order": "random", "key": 1}),
        ({"model.position": "alibi"}, {"order": (6, 0, 3, 1, 2, 5, 4, 7), "steps": 3}),
        ({}, {"order": "random", "key": 2, "steps": 3, "temperature": 1.0, "top_k": 4}),
        ({"model.residual": "none"}, {"steps": 1}),
        ({"model.position": "sinusoidal"}, {"steps": 2}),
        (
            {"model.mlp": False, "model.norm": "none", "train.dtype": "float32"},
            {"order": "random", "key": 1},
        ),
    ],
)
def test_what_is_told_once_comes_out_as_all_at_once(model, overrides, how):
    experiment, weights = model(overrides)
    how = {name: jax.random.key(value) if name == "key" else value for name, value in how.items()}
    kept, whole = (generate(experiment, weights, PROMPT, 8, cached=cached, **how) for cached in (True, False))
    np.testing.assert_array_equal(kept.tokens, whole.tokens)
    np.testing.assert_allclose(kept.outputs, whole.outputs, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(kept.step, whole.step)
    np.testing.assert_array_equal(kept.tokens[:, :4], PROMPT)
    assert kept.outputs.shape == (3, 8, experiment.task.output.size)


def test_the_outputs_are_those_of_one_pass_over_the_result_with_its_ranks(model):
    experiment, weights = model()
    found = generate(experiment, weights, PROMPT, 8, order="random", key=jax.random.key(5), steps=4)
    step = np.asarray(found.step)
    told = experiment.spread(experiment.task.tokens(experiment.task.conditions()[0]).cut(0, 1), 3)
    assert told.length == 1  # the layout of the task is shorter: index, position and rank are all that is read
    rank = np.concatenate([np.broadcast_to(np.arange(4), (3, 4)), 4 + step], axis=-1)
    place = np.broadcast_to(np.arange(12), (3, 12))
    fields = {name: np.zeros((3, 12), np.int32) for name in told._fields}
    tokens = type(told)(**{**fields, "index": place, "position": place, "valid": place >= 0, "rank": rank})
    outputs = _merged(experiment, weights)(found.tokens, tokens, 0, Sites())
    np.testing.assert_allclose(outputs[:, 4:], found.outputs, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.tokens[:, 4:], found.outputs.argmax(axis=-1))


def test_the_order_is_the_one_asked_for(model):
    experiment, weights = model()
    found = generate(experiment, weights, PROMPT, 4, order=(2, 0, 3, 1))
    np.testing.assert_array_equal(found.step, [[1, 3, 0, 2]] * 3)
    drawn = generate(experiment, weights, PROMPT, 8, order="random", key=jax.random.key(0)).step
    np.testing.assert_array_equal(np.sort(drawn, axis=-1), [range(8)] * 3)
    assert (drawn[0] != drawn[1]).any(), "every prompt has an order of its own"


def test_options_of_numpy_are_those_of_python(model):
    found = [generate(*model(), PROMPT, 3, order=order) for order in ((2, 0, 1), np.array([2, 0, 1]))]
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)


def test_counts_grow_by_the_arccos_and_end_exactly():
    assert list(counts(4, 4)) == [1, 1, 1, 1]
    assert list(counts(8, 1)) == [8]
    assert list(counts(8, 3)) == [2, 2, 4]
    left = 256 - np.cumsum(counts(256, 64))
    np.testing.assert_allclose(left, 256 * np.arccos(np.arange(1, 65) / 64) / (np.pi / 2), atol=1)
    for length in range(1, 12):
        for steps in range(1, length + 1):
            found = counts(length, steps)
            assert (found.sum(), len(found), found.min() >= 1) == (length, steps, True)


def test_rows_of_a_step_are_filled_up():
    found = rows(np.array([[5, 3, 4], [3, 4, 5]]), np.array([0, 1, 1]), 6)
    np.testing.assert_array_equal(found, [[[5, 6], [3, 4]], [[3, 6], [4, 5]]])


def test_padded_prompts_come_out_as_alone(model):
    experiment, weights = model()
    valid = np.array([[False, False, True, True], [True] * 4, [False, True, True, True]])
    found = generate(experiment, weights, PROMPT, 3, valid=valid, order=(1, 0, 2))
    for row, size in enumerate([2, 4, 3]):
        alone = generate(experiment, weights, PROMPT[row : row + 1, -size:], 3, order=(1, 0, 2))
        np.testing.assert_array_equal(alone.tokens[0, -3:], found.tokens[row, -3:])
        np.testing.assert_allclose(alone.outputs[0], found.outputs[row], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "how", "said"),
    [
        ({}, {"order": (0, 1, 1, 2)}, r"order = \(0, 1, 1, 2\) is not allowed; .* every number from 0 to 3 once\."),
        ({}, {"order": (0.0, 1, 2, 3)}, r"generate\.order: \(0\.0, 1, 2, 3\) is not allowed; .*"),
        ({}, {"order": 3}, r"generate\.order: 3 is not allowed; .*"),
        ({}, {"order": "random"}, r"key: a random order is drawn, and needs one; .*"),
        ({}, {"steps": 5}, r"steps = 5 is not allowed; allowed: None or a whole number from 1 to length = 4\."),
        ({}, {"top_k": 0}, r"top_k = 0 is not allowed; .*"),
        ({}, {"method": "diffusion"}, r"method: 'diffusion' is not what .* trains; allowed: 'any_order'\."),
        (
            {"model.mask": "[sliding_window(1)] * 2 + [sliding_window(2) & ~sliding_window(1)] * 2"},
            {},
            r"model\.mask: .* lets row 4 depend on row 5, which is not said before it; .*",
        ),
        (
            {
                "model.mask": "[sliding_window(1)] * 2 + [by_rank(strict=True)] * 2",
                "model.operator": "[retention] * 2 + [softmax] * 2",
            },
            {"cached": True},
            r"cached: the operator retention.* of layer 0 cannot read each row once: its state takes rows in the order"
            r" stored; allowed: cached=False\.",
        ),
    ],
    ids=str,
)
def test_refusals(model, overrides, how, said):
    experiment, weights = model(overrides)
    with pytest.raises(ConfigError, match=f"^{said}$"):
        generate(experiment, weights, PROMPT, 4, **how)
