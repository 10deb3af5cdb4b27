"""Rows that architectures add: what they are made of, who sees them, and that they leave no trace in the shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.config.build import build
from positionbias.masks.frames import FrameCausal
from positionbias.masks.order import Causal
from positionbias.models.sites import Sites
from positionbias.models.summary_token import AroundSummary
from positionbias.spec import ConfigError
from positionbias.tokens import joined, sequential

TASK = "inverse_permutation(n=3, alphabet=4, scratch=True)"  # 6 rows of context, 3 that answer
VECTORS = {"model.inputs": "vector", "objective": "squared_error"}
PLACES = {"contextual_token": 0, "token_prepending": 0, "summary_token": 6}


def made(tiny, architecture, **changes):
    """An experiment of two layers without norms, so that sites add up."""
    wanted = {"task": TASK, "model.layers": 2, "model.norm": "none", "model.architecture": architecture, **changes}
    return build(tiny(wanted))


def read(experiment, valid=None, edit=None):
    """Model, outputs of two examples and all that was recorded; `valid` [T] or [B, T] says what is padding."""
    condition = experiment.task.conditions()[0]
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 2))(jax.random.key(1))
    tokens = batch.tokens if valid is None else batch.tokens._replace(valid=valid)

    def call():
        sites = Sites(record=["*"], edit=edit)
        return model(batch.inputs, tokens, experiment.task.context_length(condition), sites), sites.recorded

    return model, *jax.device_get(jax.jit(call)())


@pytest.mark.parametrize("architecture", PLACES)
@pytest.mark.parametrize("position", ["learned", "rope", "one_hot"])
def test_inputs_and_outputs_keep_their_rows_and_layers_have_one_more(tiny, architecture, position):
    experiment = made(tiny, architecture, **{"model.position": position, "model.width": 32})
    assert experiment.blueprint.length == 10
    model, outputs, seen = read(experiment)
    assert outputs.shape == (2, 9, 8)
    assert seen["embedding"].shape[:2] == (2, 9)
    assert seen["final"].shape[:2] == (2, 9)
    assert seen["layers.1.stream"].shape == (2, 10, 32)
    assert seen["layers.1.attention.pattern"].shape == (2, 2, 10, 10)
    place = PLACES[architecture]
    others = [row for row in range(10) if row != place]
    rows = seen["layers.1.stream"][:, others]
    np.testing.assert_array_equal(seen["final"][..., :32], rows)
    if position == "one_hot":
        # The code is in the last features: that of the added row, and those of inputs moved by it.
        assert seen["added"][0, 0, 22:].tolist() == np.eye(10)[9 - place].tolist()
        assert seen["embedding"][0, :, 22:].tolist() == np.eye(10)[[9 - row for row in others]].tolist()
    if position == "learned":
        table = np.asarray(model.embedding.params["table"][...])
        assert table.shape == (10, 32)


def test_a_table_of_positions_is_read_by_the_moved_tokens(tiny):
    plain, moved = made(tiny, "decoder_only"), made(tiny, "token_prepending")
    (one, _, before), (other, _, after) = read(plain), read(moved)
    tables = [np.asarray(model.embedding.params["table"][...]) for model in (one, other)]
    contents = [np.asarray(model.embedding.table[...]) for model in (one, other)]
    inputs = [
        np.argmin(np.abs(content[:, None] - (seen["embedding"][0] - table)).sum(-1), axis=0)
        for content, seen, table in zip(contents, (before, after), (tables[0], tables[1][1:]), strict=True)
    ]
    np.testing.assert_array_equal(*inputs)
    np.testing.assert_allclose(after["embedding"][0], contents[1][inputs[1]] + tables[1][1:], atol=1e-6)
    np.testing.assert_allclose(after["added"][0], np.asarray(other.row.vector[...]) + tables[1][:1], atol=1e-6)


SEGMENTS = {"task": "associative_recall(pairs=2, keys=4, values=4, delays=1, shift=0)", "model.mask": "causal"}


@pytest.mark.parametrize(
    ("assignment", "architecture", "wanted"),
    [
        ("sequential", "token_prepending", [0, 1, 2, 3, 4, 5]),
        ("sequential", "summary_token", [0, 1, 2, 3, 4, 5]),
        ("reversed", "contextual_token", [5, 4, 3, 2, 1, 0]),
        ("reversed", "summary_token", [5, 4, 3, 2, 1, 0]),
        ("padded(3)", "token_prepending", [3, 4, 5, 6, 7, 8]),
        ("padded(3)", "summary_token", [3, 4, 5, 6, 7, 8]),
        ("shared", "token_prepending", [0, 1, 2, 1, 2, 3]),
        ("shared", "summary_token", [0, 1, 0, 1, 2, 3]),
        ("per_segment", "summary_token", [0, 1, 0, 1, 0, 1]),
    ],
)
def test_positions_are_assigned_over_all_rows(tiny, assignment, architecture, wanted):
    """The tokens told, parted for the added row; two pairs, in segments 1 and 2, are asked for by a token of none."""
    experiment = made(tiny, architecture, **{**SEGMENTS, "model.assignment": assignment})
    condition = experiment.task.conditions()[0]
    context = experiment.task.context_length(condition)
    told = experiment.assigned(experiment.task.tokens(condition), context, None)
    assert told.length == 5
    assert joined(told.parted(experiment.architecture.place(context))).position.tolist() == wanted
    assert experiment.blueprint.length == max(wanted) + 1


@pytest.mark.parametrize("architecture", ["token_prepending", "summary_token"])
def test_drawn_positions_are_drawn_for_the_added_row_too(tiny, architecture):
    keys = jax.random.split(jax.random.key(0), 300)
    for assignment, longest in (("randomized(8)", 8), ("random", 6), ("offset(2)", 8)):
        experiment = made(tiny, architecture, **{**SEGMENTS, "model.assignment": assignment})
        assert experiment.blueprint.length == longest
        tokens = experiment.task.tokens(experiment.task.conditions()[0])
        told = jax.jit(lambda keys, e=experiment, t=tokens: e.assigned(t, 4, keys))(keys)
        place = experiment.architecture.place(4)
        found = np.asarray(joined(told.parted(place)).position)
        assert found.shape == (300, 6)
        assert all(len(set(row)) == 6 for row in found.tolist()), "positions collide"
        assert len(np.unique(found[:, place])) > 2, "the added row is always told the same"
        assert found.max() == longest - 1
        assert (np.diff(found) > 0).all() == (assignment != "random")
    with pytest.raises(ConfigError, match=r"^model\.assignment: longest = 5 has no position for each of 6 tokens;"):
        made(tiny, architecture, **{**SEGMENTS, "model.assignment": "randomized(5)"})


def test_the_added_row_is_embedded_at_its_position(tiny):
    experiment = made(tiny, "token_prepending", **{**SEGMENTS, "model.assignment": "reversed"})
    condition = experiment.task.conditions()[0]
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    batch = jax.jit(lambda key: experiment.task.batch(key, condition, 2))(jax.random.key(1))

    def read(inputs):
        sites = Sites(record=["added", "embedding"])
        model(inputs, experiment.assigned(batch.tokens, 4, None), 4, sites)
        return sites.recorded

    recorded = jax.jit(read)(batch.inputs)
    table, content = (np.asarray(x[...]) for x in (model.embedding.params["table"], model.embedding.table))
    np.testing.assert_allclose(recorded["added"][0], np.asarray(model.row.vector[...]) + table[5:], atol=1e-6)
    np.testing.assert_allclose(recorded["embedding"][0], content[batch.inputs[0]] + table[4::-1], atol=1e-6)


# ------------------------------------------------------------------------------------------------ contextual_token


def test_the_contextual_token_is_the_mlp_of_the_mean_of_valid_context(tiny):
    experiment = made(tiny, "contextual_token(encoder_layers=2)", **{"model.position": "rope"})
    valid = np.ones((2, 9), bool)
    valid[0, 1] = valid[1, 4:6] = False
    model, _, seen = read(experiment, valid)
    encoded, weight = seen["encoder.final"], valid[:, :6, None]
    mean = (encoded * weight).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
    hidden = jax.nn.gelu(mean @ np.asarray(model.first.weight[...]))
    np.testing.assert_allclose(seen["added"], hidden @ np.asarray(model.second.weight[...]), atol=1e-5)
    pattern = seen["encoder.layers.0.attention.pattern"]
    np.testing.assert_array_equal(pattern[0, 0] > 0, valid[0, :6] & valid[0, :6, None])
    assert (pattern[1, 0, 0, :4] > 0).all()
    assert "encoder.layers.1.stream" in seen


def test_the_readout_reads_each_row_beside_the_contextual_token(tiny):
    _, outputs, seen = read(made(tiny, "contextual_token"))
    stream = seen["layers.1.stream"]
    expected = np.concatenate([stream[:, 1:], np.repeat(stream[:, :1], 9, axis=1)], axis=-1)
    np.testing.assert_array_equal(seen["final"], expected)
    model, outputs, seen = read(made(tiny, "contextual_token(concatenated=False)"))
    np.testing.assert_allclose(outputs, seen["final"] @ np.asarray(model.readout.last.weight[...]), atol=1e-5)


def test_reach_of_a_contextual_token_is_literal(tiny):
    window = {"model.mask": "causal & sliding_window(width=2)", "task.n": 2, "model.layers": 1}
    experiment = made(tiny, "contextual_token(concatenated=False)", **window)
    condition = experiment.task.conditions()[0]
    tokens = experiment.task.tokens(condition)
    whole = [1, 1, 1, 1, 0, 0]
    expected = [whole, [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]]
    expected.append([0, 0, 0, 0, 1, 1])
    assert experiment.reach(condition).astype(int).tolist() == expected
    padded = tokens._replace(valid=np.array([True, True, False, True, True, True]))
    assert experiment.reach(condition, padded).astype(int)[0].tolist() == [1, 1, 0, 1, 0, 0]
    beside = made(tiny, "contextual_token", **window)
    assert beside.reach(condition).astype(int).tolist() == [
        whole, whole, whole, whole, [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ token_prepending


def entered(seen, layer):
    """The stream at the input of a layer."""
    return (
        seen[f"layers.{layer}.stream"] - seen[f"layers.{layer}.attention.output"] - seen[f"layers.{layer}.mlp.output"]
    )


@pytest.mark.parametrize(
    ("arguments", "overwritten"), [("", [1, 2]), ("start=0", [0, 1, 2]), ("start=1, stop=2", [1]), ("start=2", [2])]
)
def test_the_row_in_front_takes_the_last_of_the_context(tiny, arguments, overwritten):
    experiment = made(tiny, f"token_prepending({arguments})", **{"model.layers": 3})
    valid = np.ones((2, 9), bool)
    valid[1, 4:6] = False
    _, _, seen = read(experiment, valid)
    for layer in range(3):
        begins = np.concatenate([seen["added"], seen["embedding"]], axis=1)
        before = seen[f"layers.{layer - 1}.stream"] if layer else begins
        expected = before[:, 0] if layer not in overwritten else before[[0, 1], [6, 4]]
        np.testing.assert_allclose(entered(seen, layer)[:, 0], expected, atol=1e-5)
        np.testing.assert_allclose(entered(seen, layer)[:, 1:], before[:, 1:], atol=1e-5)


def test_early_rows_reach_the_end_of_the_context(tiny):
    experiment = made(tiny, "token_prepending", **{"task.n": 2})
    condition = experiment.task.conditions()[0]
    whole = [1, 1, 1, 1, 0, 0]
    expected = [whole, whole, whole, whole, [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert experiment.reach(condition).astype(int).tolist() == expected
    late = made(tiny, "token_prepending(start=2)", **{"task.n": 2, "model.layers": 3})
    narrow = dataclasses.replace(late, blueprint=dataclasses.replace(late.blueprint, masks=(Causal(),) * 3))
    assert narrow.reach(condition).astype(int).tolist() == expected
    padded = experiment.task.tokens(condition)._replace(valid=np.array([True, True, False, False, True, True]))
    assert experiment.reach(condition, padded).astype(int)[0].tolist() == [1, 1, 0, 0, 0, 0]


# --------------------------------------------------------------------------------------------------- summary_token


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (AroundSummary(Causal(), 3, True), ["100000", "110000", "111000", "111100", "000110", "000111"]),
        (AroundSummary(Causal(), 3, False), ["100000", "110000", "111000", "111100", "111110", "111111"]),
        (AroundSummary(~Causal(), 3, True), ["011011", "001011", "000011", "111100", "000101", "000100"]),
        (AroundSummary(FrameCausal(), 3, True), ["110000", "110000", "111000", "111100", "000111", "000111"]),
    ],
)
def test_the_mask_around_a_summary_is_literal(mask, expected):
    told = joined(sequential(5, frame=np.array([1, 1, 2, 3, 3], np.int32)).parted(3))
    found = np.asarray(mask.dense(told, told)).astype(int)
    assert ["".join(map(str, row)) for row in found] == expected
    traced = jax.jit(mask.dense)(told, told)
    np.testing.assert_array_equal(traced, mask.dense(told, told))


def test_what_comes_after_reaches_the_context_by_way_of_the_summary(tiny):
    window = {"model.mask": "causal & sliding_window(width=2)", "task.n": 2}
    experiment = made(tiny, "summary_token", **window)
    condition = experiment.task.conditions()[0]
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert experiment.reach(condition).astype(int).tolist() == expected
    alone = made(tiny, "summary_token", **{**window, "model.layers": 1})
    assert alone.reach(condition).astype(int)[4:].tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]]
    past = made(tiny, "summary_token(bottleneck=False)", **{**window, "model.mask": "causal", "model.layers": 1})
    assert past.reach(condition).astype(int)[4].tolist() == [1, 1, 1, 1, 1, 0]


def test_nothing_passes_a_summary_that_is_wiped(tiny):
    experiment = made(tiny, "summary_token")
    wiped = {"layers.0.stream": ("scale", jnp.ones((10, 1)).at[6].set(0))}
    shifted = {**wiped, "embedding": ("add", jnp.zeros((9, 16)).at[:6].set(1.0))}
    outputs = [read(experiment, edit=edit)[1][:, 6:] for edit in (wiped, shifted)]
    np.testing.assert_array_equal(*outputs)
    shifted.pop("layers.0.stream")
    assert np.abs(read(experiment, edit=shifted)[1][:, 6:] - read(experiment)[1][:, 6:]).max() > 1e-3


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.architecture": "contextual_token(0)"},
            "model.architecture: encoder_layers = 0 is not allowed; allowed: a whole number from 1.",
        ),
        (
            {"model.architecture": "contextual_token(3)"},
            "model.architecture: encoder_layers = 3 is more than the stack's layers, whose operators and position"
            " schemes the encoder takes; allowed: 1 to 2.",
        ),
        (
            {"model.architecture": "contextual_token", "model.readout": "tied"},
            "model.readout: 'tied' needs a stream 16 wide at the end, got 32; allowed: linear, mlp.",
        ),
        (
            {"model.architecture": "contextual_token", "model.readout": "none"},
            "model.readout: 'none' needs a stream 8 wide at the end, got 32; allowed: linear, mlp.",
        ),
        (
            {"model.architecture": "contextual_token", "task": "rebinding", "model.mask": "causal"},
            "model.architecture: contextual_token needs a context for the row that it adds, and the task has none;"
            " allowed: decoder_only, or a task with a context.",
        ),
        (
            {"model.architecture": "token_prepending(start=-1)"},
            "model.architecture: start = -1 is not allowed; allowed: a whole number from 0.",
        ),
        (
            {"model.architecture": "token_prepending(start=1, stop=1)"},
            "model.architecture: stop = 1 is not allowed; allowed: None or a whole number from 2, more than start.",
        ),
        (
            {"model.architecture": "token_prepending(start=2)"},
            "model.architecture: start = 2 leaves none of the 2 layers to read the row in front; allowed: 0 to 1, or"
            " more model.layers.",
        ),
        (
            {"model.architecture": "token_prepending(stop=3)"},
            "model.architecture: stop = 3 is beyond model.layers = 2; allowed: None or 2 to 2.",
        ),
        (
            {"model.architecture": "summary_token", "task": "inverse_permutation_matrix(d=2)", **VECTORS},
            "model.architecture: summary_token sums the context up for what comes after, and the task has no row behind"
            " its context; allowed: decoder_only, or a task that has.",
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny, changes, message):
    with pytest.raises(ConfigError) as error:
        made(tiny, "decoder_only", **changes)
    assert str(error.value) == message
