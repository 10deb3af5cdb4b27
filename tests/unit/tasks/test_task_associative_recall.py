"""Associative recall: layout, independence of slot and delay, and ceilings against enumeration."""

import functools
import itertools
import re
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from positionbias import spec
from positionbias.tasks import associative_recall
from positionbias.tasks.associative_recall import AssociativeRecall
from positionbias.tasks.base import Batch

TINY = {
    "one query": AssociativeRecall(pairs=3, keys=3, values=2, queries=1, delays=2),
    "fillers": AssociativeRecall(pairs=3, keys=3, values=3, queries=1, delays=1, distractors=1, padding=1),
    "two queries": AssociativeRecall(pairs=3, keys=4, values=2, queries=2, delays=2, distractors=1),
    "two queries and a filler": AssociativeRecall(pairs=3, keys=3, values=2, queries=2, delays=2, distractors=0),
    "all asked": AssociativeRecall(pairs=2, keys=2, values=3, queries=2, delays=2),
}


@functools.cache
def drawn(task, count=20000):
    """Samples of the condition trained on, as numpy."""
    made = jax.jit(lambda key: task.batch(key, task.conditions()[0], count))(jax.random.key(0))
    return jax.tree.map(np.asarray, made)


def sample(task, seed, condition):
    return jax.jit(lambda key: task.sample(key, condition))(jax.random.key(seed))


def every_world(task):
    """Every equally likely example of a tiny task, written out independently of the sampler."""
    real = task.pairs if task.distractors is None else task.queries + task.distractors
    start = task.padding + 2 * task.pairs
    for order in itertools.permutations(range(task.pairs)):
        for keys in itertools.permutations(range(1, task.keys + 1), real):
            for values in itertools.product(range(task.keys + 1, task.keys + task.values + 1), repeat=real):
                for places in itertools.permutations(range(task.delays), task.queries):
                    inputs = [0] * (start + task.delays)
                    for slot, key, value in zip(order, keys, values, strict=False):
                        inputs[task.padding + 2 * slot : task.padding + 2 * slot + 2] = key, value
                    answers = []
                    for place, slot, key, value in zip(places, order, keys, values, strict=False):
                        inputs[start + place] = key
                        answers.append((start + place, slot, value))
                    yield inputs, answers


def as_batch(task, worlds):
    """The fields of a batch that ceilings and baselines read."""
    inputs = np.array([inputs for inputs, _ in worlds])
    answers = np.array([answers for _, answers in worlds])
    targets = np.zeros_like(inputs)
    np.put_along_axis(targets, answers[..., 0], answers[..., 2], axis=1)
    fields = dict.fromkeys(Batch._fields)
    fields.update(inputs=inputs, targets=targets, query=answers[..., 0], evidence_slot=answers[..., 1])
    return Batch(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})


def enumerated_ceiling(worlds, visible):
    """Per world and answer: the posterior's peak, given the row and the inputs it sees."""
    seen = [
        [(row, tuple(t if visible[row, j] else -1 for j, t in enumerate(inputs))) for row, _, _ in answers]
        for inputs, answers in worlds
    ]
    posterior = defaultdict(Counter)
    for views, (_, answers) in zip(seen, worlds, strict=True):
        for view, (_, _, value) in zip(views, answers, strict=True):
            posterior[view][value] += 1
    peak = {view: max(counts.values()) / sum(counts.values()) for view, counts in posterior.items()}
    return np.array([[peak[view] for view in views] for views in seen])


@pytest.mark.parametrize("name", TINY)
def test_ceiling_is_the_enumerated_posterior(name):
    task = TINY[name]
    worlds = list(every_world(task))
    batch = as_batch(task, worlds)
    judge = jax.jit(lambda batch, visible: jax.vmap(lambda item: task.ceiling(item, visible))(batch))
    random = np.random.default_rng(0)
    size = len(worlds[0][0])
    cases = [np.tri(size, dtype=bool), ~np.tri(size, dtype=bool), np.zeros((size, size), bool)]
    cases += [random.random((size, size)) < share for share in (0.3, 0.5, 0.5, 0.5, 0.7, 0.7, 0.9)]
    # Rows that see every query and little else, and rows that see their own key alone: the branches that are rare.
    region = np.arange(size) >= size - task.delays
    cases += [np.where(region, True, random.random((size, size)) < 0.4) for _ in range(3)]
    cases += [np.where(region, np.eye(size, dtype=bool), random.random((size, size)) < 0.4) for _ in range(3)]
    for visible in cases:
        np.testing.assert_allclose(
            judge(batch, jnp.asarray(visible)), enumerated_ceiling(worlds, visible), rtol=1e-5, err_msg=str(visible)
        )


@pytest.mark.parametrize("name", TINY)
def test_samples_are_among_the_enumerated_worlds(name):
    task = TINY[name]
    worlds = {(tuple(inputs), tuple(answers)) for inputs, answers in every_world(task)}
    batch = drawn(task, 200)
    for b in range(200):
        targets = batch.targets[b][batch.query[b]]
        answers = zip(batch.query[b].tolist(), batch.evidence_slot[b].tolist(), targets.tolist(), strict=True)
        assert (tuple(batch.inputs[b].tolist()), tuple(answers)) in worlds


def test_ceiling_is_one_where_all_is_seen_and_chance_where_nothing_is():
    task = AssociativeRecall()
    condition = task.conditions()[0]
    item = sample(task, 0, condition)
    size = task.length(condition)
    judge = jax.jit(task.ceiling)
    assert judge(item, jnp.tri(size, dtype=bool)).tolist() == [1.0]
    np.testing.assert_allclose(judge(item, jnp.zeros((size, size), bool)), [1 / 64], rtol=1e-6)


@pytest.mark.parametrize("queries", [1, 3])
def test_slot_and_delay_are_uniform_and_independent(queries):
    task = AssociativeRecall(pairs=4, keys=8, values=4, queries=queries, delays=5)
    batch = drawn(task)
    for answer in range(queries):
        table = np.zeros((4, 5))
        np.add.at(table, (batch.evidence_slot[:, answer], batch.query_slot[:, answer]), 1)
        assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_the_independence_test_catches_queries_in_slot_order():
    task = AssociativeRecall(pairs=4, keys=8, values=4, queries=3, delays=5)
    batch = drawn(task)
    table = np.zeros((4, 5))
    np.add.at(table, (np.sort(batch.evidence_slot)[:, 0], batch.query_slot[:, 0]), 1)
    assert stats.chisquare(table.ravel()).pvalue < 1e-4


@pytest.mark.parametrize(("queries", "power"), [(1, 2.0), (3, 0.01)])
def test_the_gap_law_is_the_declared_one_for_every_answer_and_knows_nothing_of_slots(queries, power):
    task = AssociativeRecall(pairs=4, keys=8, values=4, queries=queries, delays=5, gap_power=power)
    condition = task.conditions()[0]
    batch = drawn(task)
    prior = task.prior(condition)
    for answer in range(queries):
        table = np.zeros((4, 5))
        np.add.at(table, (batch.evidence_slot[:, answer], batch.query_slot[:, answer]), 1)
        expected = 20000 * np.outer(prior["evidence"], prior["query"])
        assert stats.chisquare(table, expected, axis=None).pvalue > 1e-4
    assert (np.diff(np.sort(batch.query, axis=1), axis=1) > 0).all()


def test_the_test_of_the_gap_law_catches_answers_in_the_order_drawn(monkeypatch):
    monkeypatch.setattr(associative_recall, "permutation", lambda key, size: jnp.arange(size))
    task = AssociativeRecall(pairs=4, keys=8, values=4, queries=3, delays=5, gap_power=0.01)
    batch = drawn.__wrapped__(task)  # the other sampler's may be kept
    counts = np.bincount(batch.query_slot[:, 0], minlength=5)
    assert stats.chisquare(counts, 20000 * task.prior(task.conditions()[0])["query"]).pvalue < 1e-4


def test_the_gap_law_is_that_of_the_published_generator():
    pairs, space, examples = 4, 6, 20000
    law = 0.01 * np.arange(1, space + 1) ** (0.01 - 1)
    random = np.random.default_rng(0)
    gaps = [random.choice(space, pairs, replace=False, p=law / law.sum()) for _ in range(examples)]
    task = AssociativeRecall(pairs=pairs, queries=pairs, delays=space, gap_power=0.01)
    share = task.prior(task.conditions()[0])["query"]
    asked = np.bincount(np.ravel(gaps), minlength=space) / examples
    np.testing.assert_allclose(asked, pairs * share, atol=5 * 0.5 / examples**0.5)
    assert asked.std() > 0.1


def test_the_docstring_shows_the_prior_of_the_gap_law():
    shown = re.findall(r"^ +(\d) quer(?:y|ies) ((?: +[.\d]+)+)$", AssociativeRecall.__doc__, re.MULTILINE)
    assert [int(queries) for queries, _ in shown] == [1, 4]
    for queries, shares in shown:
        task = AssociativeRecall(queries=int(queries), delays=8, gap_power=0.01)
        np.testing.assert_allclose(
            [float(share) for share in shares.split()], task.prior(task.conditions()[0])["query"], atol=5e-4
        )


def test_without_a_gap_law_the_draws_are_what_they_were():
    task = AssociativeRecall(pairs=4, queries=2)
    item = sample(task, 0, task.conditions()[0])
    assert item.inputs.tolist() == [48, 79, 41, 71, 40, 73, 61, 112, 0, 0, 0, 0, 0, 61, 0, 40]
    assert item.query.tolist() == [15, 13]


def test_real_slots_keys_and_values_are_uniform():
    task = AssociativeRecall(pairs=4, keys=6, values=5, queries=1, delays=2, distractors=1)
    batch = drawn(task)
    pairs = batch.inputs[:, :8].reshape(-1, 4, 2)
    real = pairs[..., 0] > 0
    assert (real.sum(axis=1) == 2).all()
    assert stats.chisquare(real.sum(axis=0)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(pairs[real][:, 0])[1:]).pvalue > 1e-4
    assert stats.chisquare(np.bincount(pairs[real][:, 1])[7:]).pvalue > 1e-4
    assert all(len(set(row[kept, 0].tolist())) == 2 for row, kept in zip(pairs, real, strict=True))


def test_front_padding_moves_positions_and_not_distances():
    task = AssociativeRecall(pairs=3, keys=5, values=5, delays=2, padding=1, shift=4)
    train, shifted = task.conditions()
    assert (train.name, shifted.name) == ("train", "shifted")
    near, far = (sample(task, 7, c) for c in (train, shifted))
    assert far.inputs[:5].tolist() == [0] * 5
    assert far.inputs[4:].tolist() == near.inputs.tolist()
    assert (far.evidence - near.evidence).tolist() == [[4, 4]]
    assert (far.query - near.query).tolist() == [4]
    assert far.distance.tolist() == near.distance.tolist()
    assert np.asarray(task.tokens(shifted).valid).all()
    assert task.tokens(train).role.tolist() == [0, 1, 2, 1, 2, 1, 2, 3, 3]
    assert [task.context_length(c) for c in (train, shifted)] == [7, 11]


def test_no_shift_is_one_condition():
    assert [c.name for c in AssociativeRecall(shift=0).conditions()] == ["train"]


def test_distractors_are_counted():
    item = sample(AssociativeRecall(queries=2, distractors=3), 0, AssociativeRecall().conditions()[0])
    assert item.n_distractors.tolist() == [4, 4]


def test_baselines_on_a_literal_item():
    task = AssociativeRecall(pairs=4, keys=4, values=3, delays=1)
    a, b, c = 5, 6, 7
    inputs = [1, a, 2, b, 3, a, 4, c, 1]
    item = as_batch(task, [(inputs, [(8, 0, a)])])
    item, judge = jax.tree.map(lambda x: x[0], item), jax.jit(task.baselines)

    def right(seen):
        row = np.zeros((9, 9), bool)
        row[8, seen] = True
        return {name: value.tolist() for name, value in judge(item, jnp.asarray(row)).items()}

    third = pytest.approx([1 / 3])
    assert right(range(9)) == {"chance": third, "majority": third, "nearest": [0.0], "order_free": [1.0]}
    assert right([1, 3, 5]) == {"chance": third, "majority": third, "nearest": [1.0], "order_free": [1.0]}
    assert right([1, 3]) == {"chance": third, "majority": third, "nearest": [0.0], "order_free": [0.5]}
    assert right([0, 2, 8]) == {"chance": third, "majority": third, "nearest": third, "order_free": third}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("associative_recall(pairs=0)", "pairs = 0 is not allowed; allowed: a whole number from 1."),
        ("associative_recall(keys=7)", "keys = 7 is not allowed; allowed: a whole number from pairs = 8 to 65536."),
        ("associative_recall(values=1)", "values = 1 is not allowed; allowed: a whole number from 2 to 65536."),
        (
            "associative_recall(keys=65537)",
            "keys = 65537 is not allowed; allowed: a whole number from pairs = 8 to 65536.",
        ),
        ("associative_recall(values=65537)", "values = 65537 is not allowed; allowed: a whole number from 2 to 65536."),
        (
            "associative_recall(pairs=300000000, keys=300000000)",
            "padding + shift + 2 * pairs + delays = 600000016 is not allowed; allowed: at most 8192 tokens in all.",
        ),
        (
            "associative_recall(padding=8161)",
            "padding + shift + 2 * pairs + delays = 8193 is not allowed; allowed: at most 8192 tokens in all.",
        ),
        ("associative_recall(delays=0)", "delays = 0 is not allowed; allowed: a whole number from 1."),
        (
            "associative_recall(queries=4, delays=3)",
            "queries = 4 is not allowed; allowed: 1 to 3, the smaller of pairs and delays.",
        ),
        (
            "associative_recall(queries=2, distractors=7)",
            "distractors = 7 is not allowed; allowed: None or 0 to 6, pairs - queries.",
        ),
        (
            "associative_recall(gap_power=-0.5)",
            "gap_power = -0.5 is not allowed; allowed: None or a number from 0 to 2.",
        ),
        (
            "associative_recall(gap_power=0.01, delays=513)",
            "delays = 513 is not allowed; allowed: 1 to 512 with gap_power.",
        ),
        ("associative_recall(padding=-1)", "padding = -1 is not allowed; allowed: a whole number from 0."),
        ("associative_recall(shift=-1)", "shift = -1 is not allowed; allowed: a whole number from 0."),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", text, "task")
    assert str(error.value) == f"task: {message}"


def test_the_longest_sequence_is_allowed():
    longest = AssociativeRecall(padding=8160)
    assert longest.length(longest.conditions()[-1]) == 8192
