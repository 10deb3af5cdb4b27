"""Objectives that hide or reorder inputs: what they train, ask, weigh and refuse."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.spec import ConfigError
from positionbias.tasks.associative_recall import AssociativeRecall
from positionbias.tasks.base import Size, world_of
from positionbias.tasks.inverse_permutation_matrix import InversePermutationMatrix
from positionbias.tasks.reversal import Reversal
from positionbias.tokens import sequential

TASK = Reversal(pairs=6, both=3, begin=True)
RECALL = AssociativeRecall(pairs=2, keys=4, values=4)


def objective(text):
    return spec.build("objectives", text, "objective")


def drawn(task, size=4000, seed=0):
    condition = task.conditions()[0]
    return jax.jit(lambda key: task.batch(key, condition, size))(jax.random.key(seed)), condition


def prepared(text, task, seed=1, **tokens):
    batch, condition = drawn(task)
    batch = batch._replace(tokens=batch.tokens._replace(**tokens))
    return batch, objective(text).prepare(jax.random.key(seed), batch, task, condition)


def near(share, wanted, count):
    assert abs(share - wanted) < 5 * np.sqrt(max(wanted * (1 - wanted), 0.01) / count)


ORDERED = {"model.architecture": "two_stacks", "model.mask": "[by_rank, by_rank(strict=True)]", "model.layers": 2}


@pytest.mark.parametrize(
    ("overrides", "own"),
    [
        ({"objective": "next_token"}, set()),
        ({"objective": "masked_diffusion", "model.mask": "bidirectional"}, {"hidden"}),
        ({"objective": "random_order", **ORDERED}, {"rank"}),
        ({"objective": "random_order", **ORDERED, "model.assignment": "randomized(9)"}, {"rank", "position"}),
    ],
)
def test_examples_share_all_that_is_not_told_of_each(tiny, overrides, own):
    """So that the biases of a scheme are made once, and not once an example."""
    experiment = build(tiny({"task": spec.canonical(TASK), "model.position": "rope", **overrides}))
    batch, _ = drawn(TASK, 8)
    made = jax.eval_shape(lambda key: experiment.trained(key, batch), jax.random.key(0))
    assert {name for name, field in made.tokens._asdict().items() if field.ndim > 1} == own
    assert all(field.shape == (8, 4) for name, field in made.tokens._asdict().items() if name in own)


# ------------------------------------------------------------------------------------------------------ next token


def test_a_loss_is_divided_by_all_weights_and_answers_stand_where_they_are_asked():
    batch, _ = drawn(TASK, 3)
    weighed = batch._replace(weights=jnp.tile(jnp.array([0.5, 0, 1, 0]), (3, 1)))
    assert objective("next_token").total(weighed) == 4.5
    np.testing.assert_array_equal(objective("next_token").rows(batch), batch.query)


def test_other_rows_say_what_comes_next():
    batch, made = prepared("next_token(others=0.25)", TASK)
    np.testing.assert_array_equal(made.weights, np.tile([0.25, 0.25, 1, 0], (4000, 1)))
    np.testing.assert_array_equal(made.targets[:, :2], batch.inputs[:, 1:3])
    np.testing.assert_array_equal(made.targets[:, 2], batch.targets[:, 2])
    leaks = objective("next_token(others=0.25)").forbidden(TASK, TASK.conditions()[0])
    assert leaks.tolist() == np.eye(4, k=1, dtype=bool).tolist()


def test_what_a_task_forbids_stays_forbidden_where_other_rows_train():
    task = types.SimpleNamespace(leaks=lambda condition: np.eye(4, k=2, dtype=bool))
    found = objective("next_token(others=1.0)").forbidden(task, None)
    assert found.tolist() == (np.eye(4, k=1) + np.eye(4, k=2) > 0).tolist()


def test_a_row_that_is_asked_says_its_answer_whatever_comes_next():
    batch, made = prepared("next_token(others=0.25)", RECALL)
    rows = np.arange(4000), np.asarray(batch.query)[:, 0]
    np.testing.assert_array_equal(made.targets[rows], batch.targets[rows])
    assert (made.weights[rows] == 1).all()


@pytest.mark.parametrize(("valid", "wanted"), [([0, 1, 1, 1], [0, 1, 1, 0]), ([1, 0, 1, 1], [0, 0, 1, 0])])
def test_nothing_comes_next_of_padding(valid, wanted):
    _, made = prepared("next_token(others=1.0)", TASK, valid=np.array(valid, bool))
    assert np.unique(made.weights, axis=0).tolist() == [wanted]


def test_answers_only_are_the_rows_measured():
    batch, condition = drawn(TASK, 3)
    made = objective("answer_only").prepare(
        jax.random.key(0), batch._replace(weights=batch.weights + 0.5), TASK, condition
    )
    assert made.weights.tolist() == [[0, 0, 1.5, 0]] * 3


# -------------------------------------------------------------------------------------------------------- denoising


def test_denoising_hides_replaces_and_keeps_at_its_rates():
    batch, made = prepared("masked_denoising(rate=0.4, other=0.2, kept=0.3)", TASK)
    chosen, count = np.asarray(made.weights) == 1, 16000
    assert (chosen | (np.asarray(made.weights) == 0)).all()
    near(chosen.mean(), 0.4, count)
    hidden = np.asarray(made.inputs) == 15  # the token behind the task's vocabulary
    np.testing.assert_array_equal(made.tokens.hidden, hidden)
    assert (chosen | (np.asarray(made.inputs) == batch.inputs)).all()
    near(hidden[chosen].mean(), 0.5, chosen.sum())
    kept = (np.asarray(made.inputs) == batch.inputs)[chosen].mean()
    near(kept, 0.3 + 0.2 / 15, chosen.sum())
    np.testing.assert_array_equal(np.asarray(made.targets)[chosen], np.asarray(batch.inputs)[chosen])


def test_denoising_puts_any_token_in_place_of_others():
    _, made = prepared("masked_denoising(rate=1.0, other=1.0, kept=0.0)", TASK)
    assert np.unique(made.inputs).tolist() == list(range(15))


@pytest.mark.parametrize("text", ["masked_denoising(rate=1.0)", "masked_diffusion", "random_order"])
def test_padding_is_never_said(text):
    _, made = prepared(text, TASK, valid=np.array([False, True, True, True]))
    assert (np.asarray(made.weights) > 0).any(axis=0).tolist() == [False, True, True, True]


def test_the_mask_token_is_one_more():
    assert objective("masked_denoising").input(Size("tokens", 15)) == Size("tokens", 16)


def test_answers_that_stand_in_no_input_are_always_said():
    for text in ("masked_denoising", "masked_diffusion"):
        batch, made = prepared(text, RECALL)
        rows = np.arange(4000), np.asarray(batch.query)[:, 0]
        assert (made.weights[rows] > 0).all()
        np.testing.assert_array_equal(made.targets[rows], batch.targets[rows])
        np.testing.assert_array_equal(made.inputs[rows], batch.inputs[rows])
        asked = objective(text).ask(batch, RECALL, RECALL.conditions()[0])
        np.testing.assert_array_equal(asked.inputs, batch.inputs)
        np.testing.assert_array_equal(objective(text).rows(batch), batch.query)


def test_an_answer_that_stands_in_an_input_is_hidden_and_said_there():
    batch, condition = drawn(TASK, 3)
    asked = objective("masked_diffusion").ask(batch, TASK, condition)
    assert asked.inputs[:, 3].tolist() == [15] * 3
    np.testing.assert_array_equal(asked.inputs[:, :3], batch.inputs[:, :3])
    assert objective("masked_diffusion").rows(batch).tolist() == [[3]] * 3
    assert objective("masked_diffusion").rows(batch._replace(source=0 * batch.source)).tolist() == [[0]] * 3


def test_diffusion_hides_shares_that_are_uniform():
    """Weights are 1 / p over the length, which makes the expected loss that of every token alike."""
    _, made = prepared("masked_diffusion", TASK)
    hidden = np.asarray(made.tokens.hidden)
    near(hidden.mean(), 0.5, 4000)
    counts = np.bincount(hidden.sum(axis=-1), minlength=5) / 4000  # of t uniform: every count is as likely
    np.testing.assert_allclose(counts, 0.2, atol=0.03)
    assert objective("masked_diffusion").total(made) == 4000
    mean = np.asarray(made.weights).sum() / 4000
    assert mean == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(np.asarray(made.weights) > 0, hidden > 0)


def test_the_loss_of_diffusion_bounds_the_negative_log_likelihood():
    """Of a table: tokens drawn alike and apart, told by a model that knows their law, cost their entropy exactly."""
    law = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    task = dataclasses.replace(TASK)
    batch, condition = drawn(task)
    inputs = jax.random.categorical(jax.random.key(5), law, shape=batch.inputs.shape)
    made = objective("masked_diffusion").prepare(jax.random.key(2), batch._replace(inputs=inputs), task, condition)
    outputs = jnp.broadcast_to(law, (*inputs.shape, 3))
    losses = objective("masked_diffusion").losses(outputs, made.targets % 3)
    found = jnp.sum(losses * made.weights) / objective("masked_diffusion").total(made)
    assert float(found) == pytest.approx(float(-jnp.sum(jnp.exp(law) * law)), rel=0.1)


@pytest.mark.parametrize(("t", "p"), [(0.0, 0.001), (0.5, 0.5005)])
def test_diffusion_weighs_by_chance_and_length(monkeypatch, t, p):
    """Every draw is t, or 0 of an input, which hides it; padding has no length, and rows that always say have."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, t if shape[-1] == 1 else 0.0))
    _, made = prepared("masked_diffusion", TASK)
    np.testing.assert_allclose(made.weights, np.full((4000, 4), 1 / p / 4), rtol=1e-5)
    _, made = prepared("masked_diffusion", TASK, valid=np.array([False, True, True, True]))
    np.testing.assert_allclose(made.weights, np.tile([0, *[1 / p / 3] * 3], (4000, 1)), rtol=1e-5)
    batch, made = prepared("masked_diffusion", RECALL)
    asks = np.arange(12) == np.asarray(batch.query)
    np.testing.assert_allclose(made.weights, np.where(asks, 1 / 12, 1 / p / 12), rtol=1e-5)


def test_an_answer_that_stands_where_another_is_asked_is_not_hidden():
    """Row 3 holds the first answer and says the second, which stands in no input."""
    batch, condition = drawn(TASK, 100)
    both = batch._replace(query=jnp.tile(jnp.array([2, 3]), (100, 1)), source=jnp.tile(jnp.array([3, -1]), (100, 1)))
    made = objective("masked_diffusion(answers_only=True)").prepare(jax.random.key(0), both, TASK, condition)
    assert np.unique(made.weights, axis=0).tolist() == [[0, 0, 0, 1]]
    np.testing.assert_array_equal(made.inputs, batch.inputs)


def test_a_prompt_is_never_hidden_where_only_answers_are():
    batch, made = prepared("masked_diffusion(answers_only=True)", TASK)
    np.testing.assert_array_equal(made.inputs[:, :3], batch.inputs[:, :3])
    near(np.asarray(made.tokens.hidden)[:, 3].mean(), 0.5, 4000)
    assert np.asarray(made.weights).sum() / 4000 == pytest.approx(1, abs=0.2)


def test_jrt_averages_two_mean_losses():
    task = Reversal(pairs=6, both=3, begin=True)
    batch, made = prepared("prefix_lm_plus_denoising(rate=0.5, weight=0.25)", task)
    weights = np.asarray(made.weights)
    assert weights[:, 2].sum() == pytest.approx(1, rel=1e-5)
    assert weights[:, :2].sum() == pytest.approx(0.25, rel=1e-5)
    assert objective("prefix_lm_plus_denoising(rate=0.5, weight=0.25)").total(made) == 1.25
    np.testing.assert_array_equal(weights[:, :2] > 0, np.asarray(made.inputs)[:, :2] == 15)
    np.testing.assert_array_equal(made.inputs[:, 2:], batch.inputs[:, 2:])
    near((weights[:, :2] > 0).mean(), 0.5, 8000)
    said = np.where(weights[:, :2] > 0, batch.inputs[:, :2], batch.targets[:, :2])
    np.testing.assert_array_equal(made.targets, np.concatenate([said, batch.targets[:, 2:]], axis=1))


def test_jrt_takes_means_of_small_weights_and_of_none():
    """No input of the context may be hidden here, and its rows do not count among those behind it."""
    batch, condition = drawn(TASK, 3)
    tokens = batch.tokens._replace(valid=np.array([False, False, True, True]))
    batch = batch._replace(weights=0 * batch.weights + 0.01, tokens=tokens)
    made = objective("prefix_lm_plus_denoising(rate=1.0)").prepare(jax.random.key(0), batch, TASK, condition)
    np.testing.assert_allclose(made.weights, np.tile([0, 0, 1 / 6, 1 / 6], (3, 1)), rtol=1e-5)


@pytest.mark.parametrize(("ends", "rows"), [(0, [1]), (2, [1, 3])])
def test_jrt_asks_behind_a_context(monkeypatch, ends, rows):
    monkeypatch.setattr(Reversal, "context_length", lambda task, condition: ends)
    monkeypatch.setattr(Reversal, "query_rows", lambda task, condition: np.array(rows))
    with pytest.raises(ConfigError) as error:
        objective("prefix_lm_plus_denoising").check(TASK)
    assert str(error.value) == (
        "objective: 'prefix_lm_plus_denoising' denoises the context and asks behind it, but the task asks from row 1 on"
        f" and its context ends at {ends}; allowed: a task that asks behind a context."
    )


# -------------------------------------------------------------------------------------------------------------- BICO


def test_bico_is_next_token_in_its_first_mode():
    batch, made = prepared("bidirectional_causal(rate=0.5)", TASK)
    for name in ("inputs", "targets", "weights"):
        np.testing.assert_array_equal(getattr(made, name), getattr(batch, name))


def test_bico_has_the_row_before_say_what_is_hidden():
    batch, made = prepared("bidirectional_causal(rate=0.5)", TASK, mode=np.ones(4, np.int32))
    hidden = np.asarray(made.tokens.hidden) > 0
    assert not hidden[:, 0].any(), "nothing stands before the first"
    near(hidden[:, 1:].mean(), 0.5, 12000)
    np.testing.assert_array_equal(np.asarray(made.inputs) == 15, hidden)
    np.testing.assert_array_equal(np.asarray(made.weights)[:, :3], hidden[:, 1:])
    says = np.asarray(made.weights) > 0
    np.testing.assert_array_equal(
        np.asarray(made.targets)[:, :3][says[:, :3]], np.asarray(batch.inputs)[:, 1:][hidden[:, 1:]]
    )


def test_bico_neither_hides_padding_nor_has_it_say_anything():
    valid = np.array([True, True, False, True])
    _, made = prepared("bidirectional_causal(rate=1.0)", TASK, mode=np.ones(4, np.int32), valid=valid)
    assert np.unique(made.tokens.hidden, axis=0).tolist() == [[0, 1, 0, 0]]
    assert np.unique(made.weights, axis=0).tolist() == [[1, 0, 0, 0]]


def test_bico_has_a_row_that_is_asked_say_its_answer_alone():
    """Row 6 asks for what stands in no input: it is not hidden, nor is what stands behind it."""
    batch, condition = drawn(RECALL, 3)
    rows = np.arange(12) == 6
    tokens = batch.tokens._replace(mode=np.ones(12, np.int32))
    batch = batch._replace(query=0 * batch.query + 6, weights=jnp.tile(2.0 * rows, (3, 1)), tokens=tokens)
    made = objective("bidirectional_causal(rate=1.0)").prepare(jax.random.key(0), batch, RECALL, condition)
    assert made.tokens.hidden.tolist() == [[0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]] * 3
    assert made.weights.tolist() == [[1, 1, 1, 1, 1, 0, 2, 1, 1, 1, 1, 0]] * 3
    np.testing.assert_array_equal(made.targets[:, 6], batch.targets[:, 6])


# ------------------------------------------------------------------------------------------------------ random order


def test_every_order_is_drawn_and_answers_are_asked_last():
    batch, made = prepared("random_order", TASK)
    assert len(np.unique(made.tokens.rank, axis=0)) == 24
    np.testing.assert_array_equal(made.targets, batch.inputs)
    assert (made.weights == 1).all()
    asked = objective("random_order").ask(batch, TASK, TASK.conditions()[0])
    assert asked.tokens.rank[0].tolist() == [0, 1, 2, 7]
    assert objective("random_order").rows(batch)[0].tolist() == [3]


def test_the_orders_that_are_checked_are_the_one_stored_its_reverse_and_three_more():
    ranks = [tokens.rank.tolist() for tokens in objective("random_order").layouts(sequential(6))]
    assert ranks[:2] == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    assert len({tuple(rank) for rank in ranks}) == 5
    assert all(sorted(rank) == ranks[0] for rank in ranks)


class Unheld(Reversal):
    """Some answers stand in no input: those of the last condition that are asked of b3."""

    def sample(self, key, condition, world=()):
        made = super().sample(key, condition, world)
        none = (condition.name == "held_out") & (made.inputs[1] == 2 + 6 + 3)
        return made._replace(source=jnp.where(none, -1, made.source))


class First(Reversal):
    """Answers stand in the first input."""

    def sample(self, key, condition, world=()):
        made = super().sample(key, condition, world)
        return made._replace(source=0 * made.source)


def test_random_order_looks_for_answers_that_stand_in_none_in_every_condition():
    objective("random_order").check(First(pairs=6, both=3, begin=True))
    with pytest.raises(ConfigError, match="in condition held_out of the task some answers stand in none"):
        objective("random_order").check(Unheld(pairs=6, both=3, begin=True))


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("next_token", False),
        ("next_token(others=0.5)", True),
        ("masked_diffusion", True),
        ("masked_diffusion(answers_only=True)", False),
    ],
)
def test_what_trains_rows_of_the_context(text, wanted):
    assert objective(text).trains_context == wanted


@pytest.mark.parametrize("name", ["masked_denoising", "masked_diffusion"])
@pytest.mark.parametrize(
    ("task", "condition", "row"),
    [
        ("common_words(common=2, often=4, others=3, seldom=1, vocabulary=12)", "shuffled", 12),
        ("variable_tracking(hops=2, chains=2, names=8, values=5)", "kept", 20),
        ("text(window=24)", "train", 23),
    ],
)
def test_a_row_that_holds_an_answer_is_not_asked_for_another(name, task, condition, row):
    """Else the answer that it holds would be read off what it is trained to say of the other."""
    built = spec.build("tasks", task, "task")
    with pytest.raises(ConfigError) as error:
        objective(name).check(built)
    assert str(error.value) == (
        f"objective: '{name}' has a row say the input that it holds, but in condition {condition} of the task row {row}"
        " holds one answer and is asked for another, which stands in no input; allowed: a task like 'reversal', or"
        " another objective."
    )

    def rows_of(key):
        return objective(name).rows(built.batch(key, built.conditions()[0], 4, world_of(built, key)))

    rows = jax.jit(rows_of)(jax.random.key(0))
    assert (np.sort(rows, axis=-1)[:, 1:] == np.sort(rows, axis=-1)[:, :-1]).any(axis=-1).all()


@pytest.mark.parametrize("name", ["next_token", "masked_denoising", "prefix_lm_plus_denoising", "random_order"])
def test_targets_that_are_vectors_are_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' takes targets that are tokens, but the task's are vectors"):
        objective(name).check(InversePermutationMatrix(d=3))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bidirectional_causal(rate=0)", "rate = 0.0 is not allowed; allowed: a number above 0 and at most 1"),
        ("bidirectional_causal(rate=1.5)", "rate = 1.5 is not allowed; allowed: a number above 0 and at most 1"),
        ("masked_denoising(other=1.5)", "other = 1.5 is not allowed; allowed: a number from 0 to 1"),
        ("masked_denoising(other=-0.5)", "other = -0.5 is not allowed; allowed: a number from 0 to 1"),
        ("masked_denoising(kept=-0.5)", "kept = -0.5 is not allowed; allowed: a number from 0 to 1"),
        ("prefix_lm_plus_denoising(rate=0)", "rate = 0.0 is not allowed; allowed: a number above 0 and at most 1"),
    ],
)
def test_bad_arguments(text, told):
    with pytest.raises(ConfigError) as error:
        objective(text)
    assert str(error.value) == f"objective: {told}."


@pytest.mark.parametrize(
    "text",
    [
        "bidirectional_causal(rate=1.0)",
        "masked_denoising(rate=1.0, other=1.0, kept=0.0)",
        "masked_denoising(other=0.0, kept=1.0)",
        "prefix_lm_plus_denoising(rate=1.0)",
    ],
)
def test_the_largest_arguments_are_allowed(text):
    assert spec.canonical(objective(text)).startswith(text.partition("(")[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"objective": "next_token(others=-1)"}, "objective: others = -1.0 is not allowed; allowed: a number from 0."),
        (
            {"objective": "masked_denoising(rate=0)"},
            "objective: rate = 0.0 is not allowed; allowed: a number above 0 and at most 1.",
        ),
        (
            {"objective": "masked_denoising(other=0.75, kept=0.5)"},
            "objective: kept = 0.5 is not allowed; allowed: at most 0.25 with other = 0.75.",
        ),
        (
            {"objective": "prefix_lm_plus_denoising(weight=0)"},
            "objective: weight = 0.0 is not allowed; allowed: a number above 0.",
        ),
        (
            {"objective": "masked_diffusion", "task": "in_context_classification(items=2, burstiness=1)"},
            "objective: 'masked_diffusion' has the model say inputs, but the task's are 64 vectors and its targets 32"
            " tokens; allowed: one vocabulary for both.",
        ),
        (
            {"objective": "next_token(others=1.0)", "task": "in_context_classification(dimension=32)"},
            "objective: 'next_token' has the model say inputs, but the task's are 32 vectors and its targets 32 tokens;"
            " allowed: one vocabulary for both.",
        ),
        (
            {"objective": "bidirectional_causal"},
            "model.mask: causal has one mode, but the objective bidirectional_causal reads batches in two; allowed: a"
            " mask that switches, such as 'switch(causal, bidirectional & ~masked_keys)'.",
        ),
        (
            {"objective": "random_order", "task": "associative_recall(pairs=2, keys=4, values=4)"},
            "objective: 'random_order' says inputs, but in condition train of the task some answers stand in none;"
            " allowed: a task whose answers are inputs, such as 'reversal'.",
        ),
        (
            {"objective": "random_order"},
            "model.mask: causal lets row 0 depend on input 0, which can hold the target of that row; allowed: the"
            " architecture 'two_stacks' with masks that read the order, such as '[by_rank, by_rank(strict=True)]'.",
        ),
        (
            {
                "objective": "random_order",
                "model.architecture": "two_stacks",
                "model.layers": 2,
                "model.mask": "[causal, by_rank(strict=True)]",
            },
            "model.mask: [causal, by_rank(strict=True)] lets row 0 depend on input 0, which can hold the target",
        ),
        (
            {"objective": "masked_denoising", "model.architecture": "encoder_decoder"},
            "objective: masked_denoising trains rows of the context, for which model.architecture ="
            " encoder_decoder(encoder_mask=bidirectional, cross_mask=bidirectional, encoder_layers=None) gives no"
            " outputs; allowed: decoder_only.",
        ),
        (
            {
                "objective": "squared_error",
                "task": "inverse_permutation_matrix(d=3)",
                "model.inputs": "vector",
                "model.architecture": "encoder_decoder",
                "model.mask": "neighborhood(9)",
            },
            "model.architecture: encoder_decoder(encoder_mask=bidirectional, cross_mask=bidirectional,"
            " encoder_layers=None) answers at rows 6 and later, but the task asks at row 0; allowed: decoder_only.",
        ),
        (
            {"objective": "focus_bilevel", "model.mlp": False},
            "objective: 'focus_bilevel' fits MLP matrices, of which model.mlp = False and model.frozen = [] leave none;"
            " allowed: an MLP that is trained.",
        ),
        (
            {"objective": "next_token(others=1.0)", "model.mask": "bidirectional"},
            "model.mask: bidirectional lets row 0 depend on input 1, which can hold the target of that row",
        ),
    ],
)
def test_refusals(tiny, overrides, message):
    with pytest.raises(ConfigError) as error:
        build(tiny({"task": "reversal(pairs=6, both=3, begin=True)", **overrides}))
    assert str(error.value).startswith(message)
