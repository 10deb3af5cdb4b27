"""What an intervention moves, on literal items, and what a model is measured at under it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.evaluation.by_position import Evaluator
from positionbias.evaluation.interventions import rearranged
from positionbias.evaluation.summary import summarise
from positionbias.models.sites import Sites
from positionbias.replicas import Layout, replica_keys
from positionbias.spec import ConfigError
from positionbias.tasks.associative_recall import AssociativeRecall
from positionbias.tokens import joined
from positionbias.training.auto import Auto
from positionbias.training.program import Program

RECALL = AssociativeRecall(pairs=3, keys=3, values=4, delays=2, padding=1, shift=0)
TRAIN = RECALL.conditions()[0]

sample = jax.jit(lambda key: RECALL.sample(key, TRAIN))
moved_to = jax.jit(lambda item, place: rearranged(item, place, RECALL))


def item(seed=0):
    return sample(jax.random.key(seed))


def solved(example):
    """The task solved from the item alone: the value after the asked key, and where both stand."""
    inputs = np.asarray(example.inputs)
    row = int(example.query[0])
    (at,) = np.flatnonzero(inputs[1:7:2] == inputs[row]) * 2 + 1
    return inputs[at + 1], [[at, at + 1]], row - (at + 1), (at - 1) // 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
def test_rearranging_moves_whole_pairs_and_what_speaks_of_them(seed, place):
    before = item(seed)
    after = moved_to(before, jnp.asarray(place))
    pairs = np.asarray(before.inputs[1:7]).reshape(3, 2)
    moved = np.empty_like(pairs)
    moved[place] = pairs
    np.testing.assert_array_equal(after.inputs, [0, *moved.reshape(-1), *before.inputs[7:]])
    value, evidence, distance, slot = solved(after)
    assert value == after.targets[after.query[0]]
    np.testing.assert_array_equal(after.evidence, evidence)
    assert (int(after.distance[0]), int(after.evidence_slot[0])) == (distance, slot)
    np.testing.assert_array_equal(after.tokens.segment, [0, *np.repeat(np.argsort(place) + 1, 2), 0, 0])
    np.testing.assert_array_equal(after.tokens.index, before.tokens.index)
    np.testing.assert_array_equal(after.tokens.position, before.tokens.position)


def test_segments_of_different_lengths_fill_the_rows_that_segments_held():
    example = item()
    tokens = example.tokens._replace(
        segment=np.array([0, 1, 1, 1, 2, 3, 3, 0, 0], np.int32), valid=np.array([False] + [True] * 8)
    )
    example = example._replace(tokens=tokens, inputs=jnp.arange(9), evidence=jnp.array([[4, -1]]))
    after = moved_to(example, jnp.array([2, 0, 1]))
    np.testing.assert_array_equal(after.inputs, [0, 4, 5, 6, 1, 2, 3, 7, 8])
    np.testing.assert_array_equal(after.tokens.segment, [0, 2, 3, 3, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(after.evidence, [[1, -1]])


def test_told_positions_move_and_nothing_else():
    before = item()
    length = RECALL.length(TRAIN)
    for text, expected in (("shift(5)", np.arange(length) + 5), ("move_query(by=3)", [0, 1, 2, 3, 4, 5, 6, 10, 11])):
        after = spec.build("interventions", text, "x").change(jax.random.key(0), before, RECALL, TRAIN)
        np.testing.assert_array_equal(after.tokens.position, expected)
        jax.tree.map(np.testing.assert_array_equal, before, after._replace(tokens=before.tokens))
        np.testing.assert_array_equal(after.tokens.index, before.tokens.index)


def test_filler_in_front():
    batch = jax.jit(lambda key: RECALL.batch(key, TRAIN, 4))(jax.random.key(0))
    pad = spec.build("interventions", "pad(2)", "x")
    inputs, tokens = pad.inputs_read(batch.inputs, RECALL, TRAIN), pad.tokens_read(batch.tokens, RECALL, TRAIN)
    np.testing.assert_array_equal(inputs, np.pad(batch.inputs, ((0, 0), (2, 0))))
    np.testing.assert_array_equal(tokens.index, np.arange(11))
    np.testing.assert_array_equal(tokens.position, np.arange(11))
    np.testing.assert_array_equal(tokens.role, [0, 0, *batch.tokens.role])
    assert np.asarray(tokens.valid).all()


@pytest.mark.parametrize(
    ("text", "task", "told"),
    [
        ("pad(2)", "inverse_permutation", "has no filler token; allowed: shift"),
        ("pad(8169)", "associative_recall", "by = 8169 is not allowed; allowed: at most 8168, 8192 rows in all with"),
        ("permute", "inverse_permutation", "has no segments that may stand in any order; allowed: shift, move_query."),
        ("swap(0, 8)", "associative_recall", "second = 8 is not allowed; allowed: -8 to 7"),
        ("swap(7, -1)", "associative_recall", "first and second are one place; allowed: two places."),
        ("permute", "associative_recall(pairs=1)", "has 1 segments; allowed: from 2."),
        (
            "move_query",
            "rebinding",
            "all rows stand behind the context, so no question can move alone; allowed: shift.",
        ),
        ("move_query", "inverse_permutation_matrix(d=2)", "no row stands behind the context, so no question can move"),
        ("move_query", "inverse_permutation(n=4)", "in condition train of the task inverse_permutation(n=4) part"),
    ],
)
def test_what_a_task_does_not_have_is_refused(text, task, told):
    task = spec.build("tasks", task, "task")
    with pytest.raises(ConfigError, match=re.escape(told)):
        spec.build("interventions", text, "x").check(task, task.conditions()[0])


@pytest.mark.parametrize("name", ["shift", "move_query", "pad"])
def test_a_wrong_distance_is_told_with_its_intervention(name):
    with pytest.raises(
        ConfigError, match=rf"^x: {name}\(by=0\): by = 0 is not allowed; allowed: a whole number from 1 "
    ):
        spec.build("interventions", f"{name}(0)", "x")


@pytest.mark.parametrize(
    "task",
    # Of context_or_prior some questions hold all their evidence: what the weights know of what they name.
    ["inverse_permutation(n=4, scratch=True)", "associative_recall(pairs=2)", "context_or_prior"],
)
def test_a_question_behind_all_evidence_moves_alone(task):
    task = spec.build("tasks", task, "task")
    spec.build("interventions", "move_query", "x").check(task, task.conditions()[0])


@pytest.mark.parametrize("text", ["shift(0)", "pad(0)", "move_query(0)", "shift(by=2000000)"])
def test_numbers_out_of_range_are_refused(text):
    with pytest.raises(ConfigError, match=r"by = .* is not allowed"):
        spec.build("interventions", text, "--interventions")


@pytest.mark.parametrize("under", ["shift(by=2)", "move_query", "permute", "swap(first=1)", "best_order(orders=2)"])
def test_items_are_changed_by_one_intervention_alone(under):
    for change in ("permute", "swap"):
        with pytest.raises(ConfigError) as caught:
            spec.build("interventions", f"{change}(under={under})", "x")
        assert str(caught.value) == (
            f"x: {change}(under={under}): under = {under} is not allowed, it changes the items themselves; allowed:"
            " what changes how they are read, such as pine."
        )


@pytest.mark.parametrize("under", ["pad(2)", "repeat", "nia"])
def test_a_moved_item_is_read_as_it_is_under_the_other_intervention(tiny, under):
    experiment = build(tiny({"task": spec.canonical(RECALL), "model.position": "rope"}))
    change, reader = (spec.build("interventions", text, "x") for text in (f"swap(under={under})", under))
    batch = RECALL.batch(jax.random.key(0), TRAIN, 2)
    for name in ("tokens", "inputs"):
        read = (getattr(one, f"{name}_read")(getattr(batch, name), RECALL, TRAIN) for one in (change, reader))
        jax.tree.map(np.testing.assert_array_equal, *read)
    reached = [one.reach(one.model(experiment, TRAIN), TRAIN) for one in (change, reader)]
    np.testing.assert_array_equal(*reached)
    plain = spec.build("interventions", "swap", "x")
    moved = (one.change(jax.random.key(1), item(), RECALL, TRAIN) for one in (change, plain))
    jax.tree.map(np.testing.assert_array_equal, *moved)


def test_the_other_intervention_refuses_what_it_refuses_by_itself():
    task = spec.build("tasks", "rebinding", "task")  # whose prompts hold answers
    for change in ("permute", "swap"):
        with pytest.raises(ConfigError, match=r"^repeat: in condition .* the prompt holds answers"):
            spec.build("interventions", f"{change}(under=repeat)", "x").check(task, task.conditions()[0])


def measured(config, intervention):
    """A summary of weights at initialisation."""
    experiment = build(config)
    program = Program(experiment, Auto(Layout("loop"), 8, 1))
    weights = jax.jit(jax.vmap(program.fresh))(program.replicas())
    change = spec.build("interventions", intervention, "x") if intervention else None
    keys = replica_keys(0, config.train.replicas)
    rows = Evaluator(experiment, Layout("loop"), keys, intervention=change).rows(weights)
    return summarise(rows), rows


@pytest.mark.usefixtures("no_influence")
def test_positions_matter_to_a_model_that_is_told_them_and_to_no_other(tiny):
    recall = {"task": "associative_recall(pairs=3, keys=3, values=4, delays=2, padding=1, shift=0)"}
    blind = tiny({**recall, "model.position": "none", "model.mask": "bidirectional"})
    told = tiny({**recall, "model.position": "sinusoidal"})
    for intervention in ("shift(5)", "permute", "swap", "move_query(4)"):
        share = "order_sensitivity" if intervention in ("permute", "swap") else "answers_changed"
        assert measured(blind, intervention)[0][share]["mean"] == 0, intervention
        assert measured(told, intervention)[0][share]["mean"] > 0, intervention
    assert not {"order_sensitivity", "answers_changed"} & set(measured(told, None)[0])
    assert measured(told, "pad(4)")[0]["answers_changed"]["mean"] > 0
    relative = tiny({**recall, "model.position": "rope"})
    assert measured(relative, "shift(5)")[0]["answers_changed"]["mean"] == 0


@pytest.mark.parametrize(
    ("mask", "before", "after"),
    [
        ("causal", [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        ("causal & window_with_sinks(1, 2)", [1, 1, 0, 0, 1], [0, 0, 0, 0, 1]),
        ("causal & window_with_sinks(1, 4)", [1, 1, 1, 1, 1], [1, 1, 0, 0, 1]),
    ],
)
def test_rows_in_front_take_the_places_that_a_mask_counts(tiny, mask, before, after):
    """What the question, behind two pairs, knows of the inputs: with two fillers in front, these are the sinks."""
    task = "associative_recall(pairs=2, keys=3, values=4, delays=1, shift=0)"
    experiment = build(tiny({"task": task, "model.mask": mask}))
    condition, pad = experiment.task.conditions()[0], spec.build("interventions", "pad(2)", "x")
    assert experiment.reach(condition)[-1].astype(int).tolist() == before
    assert pad.reach(experiment, condition).astype(int)[-1].tolist() == after
    tokens = jax.tree.map(jnp.asarray, experiment.task.tokens(condition))
    assert pad.reach(experiment, condition, tokens).astype(int)[-1].tolist() == after
    batch = experiment.task.batch(jax.random.key(0), condition, 2)
    model, context = experiment.initialise(jax.random.key(0)), 2 + experiment.task.context_length(condition)
    told = experiment.assigned(pad.tokens_read(batch.tokens, experiment.task, condition), context, None)

    def last(shift):
        sites = Sites(edit={"embedding": ("add", shift)})
        inputs = pad.inputs_read(batch.inputs, experiment.task, condition)
        return model(inputs, told._replace(position=told.position % 5), context, sites)[:, -1].sum()

    slopes = np.abs(np.asarray(jax.grad(last)(jnp.zeros((2, 7, 16))))).max(axis=(0, 2))
    assert (slopes[2:] > 0).astype(int).tolist() == after


def test_a_shift_moves_the_row_that_an_architecture_adds_too(tiny):
    experiment = build(
        tiny({"task": spec.canonical(RECALL), "model.architecture": "token_prepending", "model.layers": 2})
    )
    context = experiment.task.context_length(TRAIN)
    told = experiment.assigned(experiment.task.tokens(TRAIN), context, None)
    shifted = spec.build("interventions", "shift(5)", "x").change(None, item()._replace(tokens=told), RECALL, TRAIN)
    wanted = joined(told.parted(0)).position + 5
    assert joined(shifted.tokens.parted(0)).position.tolist() == wanted.tolist()


def test_rows_are_those_of_the_changed_items(tiny):
    config = tiny({"task": "associative_recall(pairs=3, keys=3, values=4, delays=2, shift=0)", "evaluation.items": 20})
    plain, moved = measured(config, None)[1], measured(config, "swap(0, 2)")[1]
    np.testing.assert_array_equal(moved["evidence_slot"], 2 - plain["evidence_slot"])
    np.testing.assert_array_equal(moved["query"], plain["query"])
    np.testing.assert_array_equal(moved["ceiling"], plain["ceiling"])
    assert np.isnan(moved["influence"]).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model.architecture": "encoder_decoder(encoder_mask=sliding_window(2), cross_mask=sliding_window(4))"},
        {"model.architecture": "looped(2, memory=True, inject=True)"},
        {"model.architecture": "contextual_token"},
        {"model.architecture": "token_prepending"},
        {"model.architecture": "summary_token(bottleneck=False)"},
        {"model.architecture": "two_stacks"},
    ],
    ids=str,
)
def test_the_reach_of_some_inputs_is_part_of_that_of_all(tiny, overrides):
    mask = {"model.mask": "causal & window_with_sinks(2, 1)", "model.layers": 2, "model.residual": "add"}
    experiment = build(tiny({"task": spec.canonical(RECALL), **mask, **overrides}))
    pad = spec.build("interventions", "pad(3)", "x")
    read = pad.tokens_read(RECALL.tokens(TRAIN), RECALL, TRAIN)
    whole = experiment.reach(TRAIN, read)
    assert 0 < whole.mean() < 1
    np.testing.assert_array_equal(experiment.reach(TRAIN, read, 9), whole[:, -9:])
    np.testing.assert_array_equal(pad.reach(experiment, TRAIN), whole[-9:, -9:])
