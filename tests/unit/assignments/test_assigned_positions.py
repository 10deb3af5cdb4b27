"""Assignments: the positions of their docstrings, what is drawn, and what a run makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.replicas import Layout
from positionbias.spec import ConfigError
from positionbias.tokens import sequential
from positionbias.training.auto import Auto
from positionbias.training.program import Program

LITERAL = [
    ("sequential", {}, 4, [0, 1, 2, 3]),
    ("sequential", {"position": [0, 0, 0, 1]}, 4, [0, 0, 0, 1]),
    ("reversed", {}, 4, [3, 2, 1, 0]),
    ("reversed", {"position": [0, 0, 0, 1]}, 4, [1, 1, 1, 0]),
    ("padded(5)", {}, 3, [5, 6, 7]),
    ("padded(5)", {"position": [0, 0, 0, 1]}, 4, [5, 5, 5, 6]),
    ("per_segment", {"segment": [0, 1, 1, 2, 2, 2, 0]}, 7, [0, 0, 1, 0, 1, 2, 0]),
    ("per_segment", {}, 3, [0, 1, 2]),
    ("shared", {"segment": [0, 1, 1, 2, 2, 2, 0]}, 7, [0, 1, 2, 1, 2, 3, 4]),
    ("shared", {"segment": [0, 0, 2, 2, 2, 1, 0, 3, 0, 0]}, 10, [0, 1, 2, 3, 4, 2, 5, 2, 6, 7]),
    ("shared", {"segment": [1, 2, 1, 2]}, 4, [0, 0, 1, 1]),
    ("shared", {"segment": [1, 1, 0, 0, 2]}, 5, [0, 1, 2, 3, 0]),
    ("shared", {}, 3, [0, 1, 2]),
    ("per_segment", {"segment": [0, 0, 1, 1, 2], "valid": [0, 0, 1, 1, 1]}, 5, [0, 0, 0, 1, 0]),
    ("shared", {"segment": [0, 0, 1, 1, 2, 0], "valid": [0, 0, 1, 1, 1, 1]}, 6, [0, 0, 0, 1, 0, 2]),
    ("concentric", {"frame": [0, 0, 1, 1, 0], "scale": [0, 0, 0, 1, 0], "valid": [0, 0, 1, 1, 1]}, 5, [0, 0, 0, 1, 2]),
    ("shared", {"segment": [1, 1, 1, 2], "valid": [0, 1, 1, 1]}, 4, [0, 0, 1, 0]),
    ("concentric", {"frame": [1, 1, 1, 0], "scale": [0, 0, 1, 0], "valid": [0, 1, 1, 1]}, 4, [0, 0, 1, 2]),
    ("concentric", {"frame": [0, 1, 1, 1, 0], "scale": [0, 0, 1, 0, 0]}, 5, [0, 1, 2, 1, 3]),
    ("concentric", {"frame": [1, 1, 2, 2, 0, 0], "scale": [0, 1, 0, 0, 0, 0]}, 6, [0, 1, 2, 2, 3, 4]),
    ("concentric", {}, 3, [0, 1, 2]),
]


def assignment(text):
    return spec.build("assignments", text, "model.assignment")


@pytest.mark.parametrize(("text", "fields", "length", "wanted"), LITERAL)
def test_literal_positions(text, fields, length, wanted):
    tokens = sequential(length, **{n: np.array(x, bool if n == "valid" else np.int32) for n, x in fields.items()})
    assert assignment(text).positions(tokens).tolist() == wanted


def test_an_image_of_24_by_24_takes_12_positions():
    """Its tokens are on average 8.5 positions before the text, 288.5 in the order of a raster."""
    y, x = np.divmod(np.arange(576), 24)
    ring = np.minimum(np.minimum(y, x), np.minimum(23 - y, 23 - x))
    tokens = sequential(578, frame=np.r_[0, [1] * 576, 0].astype(np.int32), scale=np.r_[0, ring, 0].astype(np.int32))
    found = assignment("concentric").positions(tokens)
    assert (found[0], found[1], found[-1]) == (0, 1, 13)
    assert len(set(found[1:-1])) == 12
    assert round((found[-1] - found[1:-1]).mean(), 1) == 8.5
    assert (577 - np.arange(1, 577)).mean() == 288.5


def test_random_is_an_order_as_likely_as_any_other():
    draw = jax.jit(jax.vmap(lambda key: assignment("random").draw(key, sequential(3))))
    orders, counts = np.unique(np.asarray(draw(jax.random.split(jax.random.key(0), 6000))), axis=0, return_counts=True)
    assert orders.tolist() == [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_randomized_keeps_the_order_and_takes_every_subset():
    draw = jax.jit(jax.vmap(lambda key: assignment("randomized(4)").draw(key, sequential(2))))
    found, counts = np.unique(np.asarray(draw(jax.random.split(jax.random.key(0), 6000))), axis=0, return_counts=True)
    assert found.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


PADDED = sequential(4, position=np.array([0, 0, 1, 2], np.int32))  # one in front that is no token of the sequence


def test_padding_is_told_what_the_first_is():
    ours = assignment("randomized(9)"), assignment("random")
    draw = jax.jit(jax.vmap(lambda key: [one.draw(key, PADDED) for one in ours]))
    gaps, orders = map(np.asarray, draw(jax.random.split(jax.random.key(0), 100)))
    np.testing.assert_array_equal(gaps[:, 0], gaps[:, 1])
    assert (np.diff(gaps[:, 1:], axis=1) > 0).all()
    assert np.unique(np.sort(orders, axis=1), axis=0).tolist() == [[0, 0, 1, 2]]


def test_offset_moves_everything_alike():
    draw = jax.jit(jax.vmap(lambda key: assignment("offset(6)").draw(key, PADDED)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
    assert (found - found[:, :1] == [0, 0, 1, 2]).all()
    assert set(found[:, 0]) == set(range(7))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("padded(-1)", "by = -1 is not allowed; allowed: a whole number from 0 to 1048576."),
        ("padded(1048577)", "by = 1048577 is not allowed; allowed: a whole number from 0 to 1048576."),
        ("offset(-1)", "most = -1 is not allowed; allowed: a whole number from 0 to 1048576."),
        ("offset(1048577)", "most = 1048577 is not allowed; allowed: a whole number from 0 to 1048576."),
        ("randomized(1048577)", "longest = 1048577 is not allowed; allowed: a whole number from 1 to 1048576."),
        ("randomized(0)", "longest = 0 is not allowed; allowed: a whole number from 1 to 1048576."),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(ConfigError) as error:
        assignment(text)
    assert str(error.value) == f"model.assignment: {message}"


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("padded(1048576)", 2**20 + 1),
        ("offset(1048576)", 2**20 + 1),
        ("randomized(1048576)", 2**20),
        ("randomized(1)", 1),
    ],
)
def test_the_most_and_the_fewest_positions_are_allowed(text, reach):
    assert assignment(text).reach(sequential(1)) == reach


def test_too_few_positions_are_refused(tiny):
    with pytest.raises(ConfigError) as error:
        build(tiny({"model.assignment": "randomized(3)"}))
    assert str(error.value) == (
        "model.assignment: longest = 3 has no position for each of 8 tokens; allowed: a whole number from 8."
    )


@pytest.mark.parametrize(("text", "rows"), [("sequential", 8), ("padded(3)", 11), ("randomized(20)", 20)])
def test_tables_hold_every_position_that_may_be_told(tiny, text, rows):
    assert build(tiny({"model.assignment": text})).abstract.embedding.params["table"].shape == (rows, 16)


def drawn(experiment):
    """A batch of three, by one program."""
    condition = experiment.task.conditions()[0]
    return jax.jit(lambda key: experiment.task.batch(key, condition, 3))(jax.random.key(1))


def outputs(experiment, tokens, batch):
    context = experiment.task.context_length(experiment.task.conditions()[0])
    program = jax.jit(lambda key: experiment.initialise(key)(batch.inputs, tokens, context, Sites()))
    return program(jax.random.key(0))


def test_a_model_reads_what_is_assigned(tiny):
    """The outputs under an assignment are those of the same model told these positions."""
    for text, wanted in (("reversed", np.arange(8)[::-1]), ("padded(2)", np.arange(8) + 2)):
        experiment = build(tiny({"model.assignment": text, "model.position": "sinusoidal"}))
        batch = drawn(experiment)
        keys = jax.random.split(jax.random.key(2), 3)
        told = experiment.assigned(batch.tokens, 0, keys)
        assert told.position.tolist() == wanted.tolist()
        found = outputs(experiment, told, batch)
        np.testing.assert_array_equal(found, outputs(experiment, batch.tokens._replace(position=wanted), batch))
        assert np.abs(found - outputs(experiment, batch.tokens, batch)).max() > 1e-3


def test_what_is_drawn_is_drawn_for_every_example(tiny):
    experiment = build(tiny({"model.assignment": "randomized(50)", "model.position": "rope"}))
    assert not experiment.shared_tokens
    batch = drawn(experiment)
    told = experiment.assigned(batch.tokens, 0, jax.random.split(jax.random.key(2), 3))
    assert told.position.shape == (3, 8)
    assert all(field.shape == (8,) for name, field in told._asdict().items() if name != "position")
    assert len(np.unique(told.position, axis=0)) == 3
    alone = [
        outputs(experiment, told._replace(position=told.position[row]), jax.tree.map(jnp.asarray, batch))[row]
        for row in range(3)
    ]
    np.testing.assert_allclose(outputs(experiment, told, batch), np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("text", ["randomized(50)", "offset(5)"])
def test_training_draws_positions_anew_at_every_step(tiny, text):
    """Gradients of two steps on one batch of data differ by what is told, and those of one step do not."""
    config = tiny({"model.assignment": text, "model.position": "sinusoidal", "train.microbatch": 4})
    program = Program(build(config), Auto(Layout("loop"), 4, 1))
    plain = Program(build(tiny({"model.position": "sinusoidal"})), Auto(Layout("loop"), 8, 1))
    state = jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(program.fresh))(program.replicas()))
    step = jax.jit(lambda key: program._gradient(state, key, ())[1]["loss"])
    losses = [float(step(jax.random.key(i))) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] != float(jax.jit(lambda key: plain._gradient(state, key, ())[1]["loss"])(jax.random.key(0)))
